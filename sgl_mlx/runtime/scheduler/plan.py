"""Plans, which tell a runner what to compute, and the results of its steps.

Plans and results are plain data, which `wire` serialises.

Plans name sequences by id, not by their place in the batch. Constraints, pictures and blocks read
from disk have ids too; a runner finds them through `Lookup` and its block store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.tier import Transfer

TokenScore = tuple[float | None, int]
"""A pair of a token's logprob (None if the model computed none) and the token's id."""


@dataclass(frozen=True)
class Scores:
    """Logprobs of consecutive tokens.

    Attributes:
        tokens: the tokens, each with its logprob.
        top: the likeliest tokens at each place, best first; empty if none were asked for.
    """

    tokens: tuple[TokenScore, ...] = ()
    top: tuple[tuple[TokenScore, ...], ...] = ()

    def __add__(self, later: Scores) -> Scores:
        return Scores(self.tokens + later.tokens, self.top + later.top)

    def first(self, count: int) -> Scores:
        """Return the scores of the first `count` tokens."""
        return Scores(self.tokens[:count], self.top[:count])

    def at(self, i: int) -> Scores:
        """Return the scores of token `i` alone; `i` is ignored if there is only one token."""
        if len(self.tokens) == 1:
            return self
        return Scores(self.tokens[i : i + 1], self.top[i : i + 1])


@dataclass(frozen=True)
class PicturePart:
    """A part of a picture in a batch row.

    Features `first … first + length - 1` are the embeddings of the row's new tokens from `at` on.
    `picture` is the picture's name (`sequence.Picture.name`). `grid` and `times` are
    those of `Shown`.
    """

    at: int
    first: int
    length: int
    picture: str
    grid: tuple[int, int] | None = None
    times: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class RowWindow:
    """Slots of one batch row in the layers with a sliding window.

    Attributes:
        prefix: slots of the last keys before the new tokens; 0 for a key that no new token sees. No
            new token sees a key that is not listed.
        slots: one slot for each slot of `Row.slots`.
    """

    prefix: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One sequence in a step: a batch row.

    Args:
        id: id of the sequence.
        tokens: the new tokens, whose KV this step computes.
        prefix: slots of all keys before the new tokens.
        slots: one slot for the KV of each new token; when an epoch opens, also the slots of the
            tokens that it will generate.
        position: position of the first new token.
        sample: True if a token is to be sampled after the last new token.
        params, seed: how to sample.
        output: the tokens generated so far.
        history: prompt and output tokens for a repetition penalty; empty without such a penalty.
        targets: consecutive prompt tokens to score. The last target is the token after the last
            new token; with `sample`, it is the last new token itself.
        prefix_positions: positions of the prefix keys; None if they are 0, 1, 2 …
        constraint: id of the constraint on the sampled token, or None; see `Lookup.masks`.
        pictures: which of the new tokens stand for pictures.
        drafted: how many of the last new tokens are guesses. A token is sampled before each
            guess too; see `speculation.verify`.
        place: how many tokens at the end of `output` are guesses, in a row that
            `speculation.verify.places` made for one place of a draft; else 0.
        state: two slots of recurrent state. The step reads the state before the new tokens from
            the first slot and writes the state after them to the second. Slot 0 holds the state
            before a sequence's first token. None for a model of attention alone.
        window: the slots in layers with a sliding window, if these have slots of their own. Then
            `prefix` and `slots` are those of the other layers. None if all layers use `prefix` and
            `slots`.
        lag: the position of the first new token minus its rotary position (M-RoPE). If the token is
            inside a picture, the same for the picture's start. See `vision.positions`.
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
    drafted: int = 0
    place: int = 0
    state: tuple[int, int] | None = None
    window: RowWindow | None = None
    lag: int = 0

    def keys(self, windowed: bool) -> tuple[int, ...]:
        """Return the slots of all keys before the new tokens, as one kind of layers has them.

        Args:
            windowed: True for layers with window slots of their own; keys that no new token sees
                have slot 0 there.
        """
        if not windowed:
            return self.prefix
        kept = () if self.window is None else self.window.prefix
        return (0,) * (len(self.prefix) - len(kept)) + kept

    def window_slots(self) -> tuple[int, ...]:
        """Return a window slot for each of `slots`, 0 where there is none."""
        return (0,) * len(self.slots) if self.window is None else self.window.slots


Place = tuple[str, int]
"""Id of a constraint, and the number of drafted tokens after which its mask is needed."""


@dataclass(frozen=True)
class Extend:
    """A plan of one step that computes prefill chunks and decode tokens, some with drafts.

    The runner first carries out `transfers` in order. After the step the KV of all new tokens is in
    the pool, and so is each row's recurrent state.
    """

    rows: tuple[Row, ...]
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True)
class Decode:
    """A plan of one decode step within an *epoch*: up to `width` decode steps of the same rows.

    When the epoch is over, the slot that a row writes (`Row.state`) holds the recurrent state after
    the last step whose plan named the row, even if the runner submitted another step ahead.

    Args:
        ids: ids of the sequences that need their next token.
        width: most steps of the epoch.
        ahead: True if the runner may submit the next step before it waits for this one. The next
            plan is then a `Decode` of the same epoch for the same or fewer rows, or the epoch
            ends.
        opening: the epoch's rows, in its first plan; empty in later plans.
        transfers: carried out in order before the epoch opens.
    """

    ids: tuple[str, ...]
    width: int
    ahead: bool
    opening: tuple[Row, ...] = ()
    transfers: tuple[Transfer, ...] = ()


Plan = Extend | Decode


@dataclass(frozen=True)
class StepResult:
    """The result of a step; each dictionary has sequence ids as keys.

    Args:
        tokens: the sampled tokens of each sequence that samples: one, or more after a draft.
        prompt_scores: logprobs of prompt tokens (`Row.targets`).
        token_scores: logprobs of `tokens`, for sequences that want logprobs.
    """

    tokens: dict[str, tuple[int, ...]]
    prompt_scores: dict[str, Scores] = field(default_factory=dict)
    token_scores: dict[str, Scores] = field(default_factory=dict)


class PoolLost(Exception):
    """A failure after which the pool's content is unknown."""


class Runner(Protocol):
    """The interface of an object that computes plans; `runner.ModelRunner` is one."""

    def run(self, plan: Plan) -> StepResult:
        """Compute a plan, wait for it and return its tokens and scores.

        If `run` raises, the KV slots that the plan writes may hold anything, and no KV of its epoch
        is in the pool. All other KV slots are unchanged. All slots of recurrent state are
        unchanged, too, unless the error is `PoolLost`.

        Raises:
            PoolLost: slots of recurrent state were being written, and may hold anything.
        """
        ...

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        """Write all computed KV to the pool, then carry out transfers in order."""
        ...

    def forget_epoch(self) -> None:
        """Drop the open epoch after a failed step: none of its KV reaches the pool."""
        ...

    def stats(self) -> RunnerStats:
        """Return counts and seconds since the start."""
        ...


@dataclass(frozen=True)
class RunnerStats:
    """Counts and seconds of a runner since the start.

    Attributes:
        forward_passes: forward passes of the model. If the model runs requests one by one (the
            dense path), a step has one for each sequence.
        mask_seconds: time spent computing the masks of constraints.
        pool_tokens_read: tokens whose keys attention copied out of the pool, in the first layer.
        encoder: counts of the vision tower; None for a text-only model.
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
        encoder_passes: forward passes through the tower.
        encode_seconds: time spent in these passes.
        feature_bytes: bytes of picture features cached now.
    """

    encoded_images: int
    encoder_passes: int
    encode_seconds: float
    feature_bytes: int


class Shown(Protocol):
    """A picture that is ready to be encoded."""

    @property
    def content_hash(self) -> bytes:
        """32 bytes, equal for pictures with equal features."""
        ...

    @property
    def tokens(self) -> int:
        """Number of the picture's features, each of which takes one token."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of its tokens, if they give the rotary positions (M-RoPE); else None."""
        ...

    @property
    def times(self) -> tuple[int, ...]:
        """Positions in time of its grids of tokens: `(0,)` for a picture, more for a video."""
        ...


def extent(grid: tuple[int, int], times: tuple[int, ...]) -> int:
    """Return how many rotary positions a picture or video takes: the longest of its three edges.

    Source: arXiv 2409.12191, section 2.1.
    """
    return max(*grid, times[-1] + 1)


class Lookup(Protocol):
    """The interface through which a runner finds the constraints and pictures that plans name."""

    def masks(self, places: Collection[Place]) -> Mapping[Place, bytes]:
        """Return by place, as a bit mask, which tokens the place's constraint allows next.

        Token 0 is the lowest bit of byte 0. At a place that is not in the result every token is
        allowed.
        """
        ...

    def image(self, picture: str) -> Shown:
        """Return the picture with this name from a running sequence."""
        ...
