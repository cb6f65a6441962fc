"""Plans, which a runner computes, and their results: plain data, which `wire` serialises.

Rows are named by sequence id, never by their place in a batch. Constraints, pictures and blocks
read from disk are named by id too; a runner finds them through `Lookup` and its block store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.scheduler.sequence import Scores, Sequence, Shown


@dataclass(frozen=True)
class PicturePart:
    """Features `first … first + length - 1` of a picture, which stand for tokens from `at` on.

    `picture` is the name of its content (`sequence.Picture.name`).
    """

    at: int
    first: int
    length: int
    picture: str


@dataclass(frozen=True)
class Row:
    """One sequence's share of a step.

    Args:
        id: the sequence.
        tokens: new tokens, computed in this step.
        prefix: slots of everything before them.
        slots: where KV goes: one slot a new token; when an epoch opens, also those of the tokens
            to come.
        position: position of the first new token.
        sample: whether the logits after the last token are wanted.
        params, seed, output: how to sample them; `output` is what was generated so far.
        history: prompt and output, where a repetition penalty needs it.
        targets: the prompt tokens that the logits of the last `len(targets)` tokens score (less
            one, the very last, when `sample` is set: its logits are sampled from).
        prefix_positions: positions of the prefix keys; None when they count 0, 1, 2 …
        constraint: id of the constraint on the sampled token; see `Lookup.masks`.
        pictures: which of the new tokens stand for pictures.
    """

    id: str
    tokens: tuple[int, ...]
    prefix: tuple[int, ...]
    slots: tuple[int, ...]
    position: int
    sample: bool
    params: SamplingParams
    seed: int = 0
    output: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    prefix_positions: tuple[int, ...] | None = None
    constraint: str | None = None
    pictures: tuple[PicturePart, ...] = ()

    @property
    def score_start(self) -> int:
        """Index into `tokens` of the first one whose logits are scored against `targets`."""
        return len(self.tokens) - len(self.targets) - (1 if self.sample else 0)


@dataclass(frozen=True)
class Extend:
    """Prefill chunks and single decode tokens in one forward pass; all KV is in the pool after.

    `transfers` are made first, in order.
    """

    rows: tuple[Row, ...]
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True)
class Decode:
    """One token for each of `ids`, within an *epoch*: up to `width` steps over fixed rows.

    `opening` names the rows when an epoch begins. With `ahead` the runner may submit the next
    step before it waits for this one: the next plan will then be a `Decode` of the same epoch,
    for these rows or fewer, or the epoch is over. `transfers` are made before an epoch opens.
    """

    ids: tuple[str, ...]
    width: int
    ahead: bool
    opening: tuple[Row, ...] = ()
    transfers: tuple[Transfer, ...] = ()


Plan = Extend | Decode


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step, by sequence id.

    Args:
        tokens: the tokens that follow each row's last one: one, or more if the runner knows more.
        prompt_scores: logprobs of prompt tokens (`Row.targets`).
        token_scores: logprobs of `tokens` and their alternatives.
    """

    tokens: dict[str, tuple[int, ...]]
    prompt_scores: dict[str, Scores] = field(default_factory=dict)
    token_scores: dict[str, Scores] = field(default_factory=dict)


class Runner(Protocol):
    """A computer of plans; `runner.ModelRunner` uses a model in this process."""

    def run(self, plan: Plan) -> StepResult:
        """Compute a plan; its tokens are known when this returns.

        Where it raises, the slots that the plan was to write may hold anything, and nothing of
        its epoch is in the pool; all other slots are as before.
        """
        ...

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        """Write all KV that was computed to the pool, then make transfers."""
        ...

    def forget_epoch(self) -> None:
        """Drop the open epoch, because a step failed: none of its KV reaches the pool."""
        ...

    def stats(self) -> RunnerStats:
        """Counts and seconds since the start."""
        ...


@dataclass(frozen=True)
class RunnerStats:
    """Counts and seconds of a runner since the start.

    Attributes:
        mask_seconds: time spent asking constraints what they allow.
        pool_tokens_read: tokens whose KV was copied out of the pool to be attended, in one layer.
        encoder: None for a model of text alone.
    """

    mask_seconds: float = 0.0
    pool_tokens_read: int = 0
    encoder: EncoderStats | None = None


@dataclass(frozen=True)
class EncoderStats:
    """Pictures that a runner encoded, in how many passes and seconds; bytes of features kept."""

    encoded_images: int
    encoder_passes: int
    encode_seconds: float
    feature_bytes: int


class Lookup(Protocol):
    """A finder of what plans name by id; asked while the plan is computed, as late as possible."""

    def masks(self, constraints: Collection[str]) -> Mapping[str, bytes]:
        """Ask constraints for the tokens they allow: a bit a token, the first in the lowest bit.

        A constraint that is missing from the answer allows everything.
        """
        ...

    def image(self, picture: str) -> Shown:
        """Find the picture of that name in a running sequence."""
        ...


def arrange(rows: Iterable[Row]) -> list[Row]:
    """Sort rows: single-token rows first, then chunks; each by prefix, so that equal ones meet."""
    return sorted(rows, key=lambda row: (len(row.tokens) > 1, row.prefix))


ALTERNATIVES_COST = 4
"""Measured on SmolLM2's 49,152 tokens, on a CPU: 3.4 times the time of a score alone."""

# -- rows of sequences ------------------------------------------------------------------------


def prefill_rows(
    running: Iterable[Sequence], step_tokens: int, score_tokens: int
) -> tuple[Row, ...]:
    """Make the rows of an `Extend`: a token of each decoding sequence, then chunks of prompts.

    Args:
        step_tokens: tokens of all rows together, at most.
        score_tokens: prompt tokens scored in all rows together, at most; one whose likeliest
            alternatives are wanted too counts as `ALTERNATIVES_COST`, because they are sorted out
            of the whole vocabulary.
    """
    room, score_room = step_tokens, score_tokens
    rows: list[Row] = []
    for s in sorted(running, key=lambda s: s.prefilling):
        count = min(s.pending, len(s.table) - s.computed, room)
        if s.logprob_start is not None:
            cost = ALTERNATIVES_COST if s.params.top_logprobs_num else 1
            unscored = max(s.logprob_start - 1 - s.computed, 0)
            count = min(count, unscored + max(score_room // cost, min(score_room, 1)))
            score_room = max(score_room - cost * max(count - unscored, 0), 0)
        if count > 0:
            rows.append(row_of(s, count, s.computed + count))
            room -= count
    return tuple(rows)


def row_of(s: Sequence, count: int, table_end: int) -> Row:
    """Make the row of a sequence's next `count` tokens, with its slots up to `table_end`."""
    start, end = s.computed, s.computed + count
    return Row(
        id=s.id,
        tokens=tuple(s.tokens[start:end]),
        prefix=s.prefix_slots(),
        slots=tuple(s.table[start:table_end]),
        position=s.base.origin + start,
        sample=end == len(s.tokens) and s.wants_logits,
        params=s.params,
        seed=s.seed,
        output=s.output_tokens,
        history=tuple(s.tokens) if s.params.repetition_penalty != 1 else (),
        targets=_targets(s, end),
        prefix_positions=s.prefix_positions() if s.base.origin else None,
        constraint=s.id if s.constraint is not None else None,
        pictures=tuple(_pictures(s, start, end)),
    )


def _pictures(s: Sequence, start: int, end: int) -> Iterator[PicturePart]:
    """Find the parts of pictures that the tokens from `start` to `end` stand for."""
    for picture in s.pictures:
        first, last = max(picture.start, start), min(picture.end, end)
        if first < last:
            yield PicturePart(first - start, first - picture.start, last - first, picture.name)


def _targets(s: Sequence, end: int) -> tuple[int, ...]:
    """List the prompt tokens that the logits of the tokens from `computed` to `end` score."""
    if s.logprob_start is None:
        return ()
    return tuple(s.tokens[max(s.computed + 1, s.logprob_start) : min(end + 1, s.prompt_length)])
