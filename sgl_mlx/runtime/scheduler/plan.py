"""Plans, which a runner computes, and their results: plain data, which `wire` serialises.

Rows are named by sequence id, never by their place in a batch. Constraints, pictures and blocks
read from disk are named by id too; a runner finds them through `Lookup` and its block store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.tier import Transfer

TokenScore = tuple[float | None, int]
"""Log-probability, None where the model was not asked, and token id."""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of consecutive tokens, and the likeliest tokens at the same places."""

    tokens: tuple[TokenScore, ...] = ()
    top: tuple[tuple[TokenScore, ...], ...] = ()

    def at(self, i: int) -> Scores:
        """Pick the scores of one token."""
        if len(self.tokens) == 1:
            return self
        return Scores(self.tokens[i : i + 1], self.top[i : i + 1])


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
        forward_passes: calls of the model; a dense one is called for each row alone.
        mask_seconds: time spent asking constraints what they allow.
        pool_tokens_read: tokens whose KV was copied out of the pool to be attended, in one layer.
        encoder: None for a model of text alone.
    """

    forward_passes: int = 0
    mask_seconds: float = 0.0
    pool_tokens_read: int = 0
    encoder: EncoderStats | None = None


@dataclass(frozen=True)
class EncoderStats:
    """Counts of a runner's vision tower since the start.

    Attributes:
        encoded_images: pictures encoded.
        encoder_passes: passes through the tower.
        encode_seconds: time spent in them.
        feature_bytes: features kept now for later prompts, in bytes.
    """

    encoded_images: int
    encoder_passes: int
    encode_seconds: float
    feature_bytes: int


class Shown(Protocol):
    """A picture that is ready to be encoded."""

    @property
    def content_hash(self) -> bytes:
        """32 bytes; equal for equal features."""
        ...

    @property
    def tokens(self) -> int:
        """How many features it has."""
        ...


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
