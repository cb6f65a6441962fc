"""A sequence: one sample or prompt inside the scheduler.

Two integers, `computed` and `len(tokens)`, describe its progress. The first `computed` tokens have
KV. A sequence with one token after the computed ones decodes; a sequence with several more is being
prefilled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.cache.radix import PLAIN, Node
from sgl_mlx.runtime.cache.restores import Restore
from sgl_mlx.runtime.scheduler.plan import PicturePart, Row, RowWindow, Scores, Shown, extent


class Output(Protocol):
    """The receiver of a sequence's tokens and logprobs; it decides when the sequence ends."""

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        """Take the next token, sampled or forced; return the finish reason if the output ends."""
        ...

    def score_prompt(self, scores: Scores) -> None:
        """Take the logprobs of the next prompt tokens, in order."""
        ...

    def score_next(self, scores: Scores) -> None:
        """Take the logprobs of the token after the prompt, when no output is generated."""
        ...

    def finish(self, reason: FinishReason) -> None:
        """Take the finish reason; called again only if a `held` sequence has to be recomputed."""
        ...


class Constraint(Protocol):
    """A rule for which tokens may come next in an output; see `grammar` and `healing`."""

    def copy(self) -> Constraint:
        """Return a constraint in the same state, which can be advanced on its own."""
        ...

    @property
    def complete(self) -> bool:
        """True if the output must end here."""
        ...

    @property
    def done(self) -> bool:
        """True if every token is allowed from now on."""
        ...

    @property
    def error(self) -> str | None:
        """Why no token is allowed at all; None if the constraint can go on."""
        ...

    def allowed(self) -> bytes:
        """Return the allowed next tokens as a bit mask; token 0 is the lowest bit of byte 0."""
        ...

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen."""
        ...

    def forced(self) -> list[int]:
        """Advance by the tokens that must come next and return them; [] if there is a choice."""
        ...


class Base(NamedTuple):
    """KV before a sequence's own tokens, computed by other sequences.

    This KV comes from parallel branches (`core.Parallel`) or from the text before a position gap
    (`core.Shift`). The key in `slots[i]` has the position `positions[i]`. The sequence's own
    tokens start at position `origin`. `window` has the slots of these keys in layers with a sliding
    window, 0 before the window; it means nothing if these layers have no slots of their own. `lag`
    is the lag of the own tokens that the pictures before them cause; see `Row.lag`.
    """

    slots: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    origin: int = 0
    window: tuple[int, ...] = ()
    lag: int = 0


class Picture(NamedTuple):
    """A picture in a prompt: the tokens `start … end - 1` get its features as embeddings."""

    start: int
    image: Shown

    @property
    def end(self) -> int:
        return self.start + self.image.tokens

    @property
    def name(self) -> str:
        """Name of the picture in plans; equal for pictures with equal features."""
        return self.image.content_hash.hex()

    @property
    def key(self) -> int:
        """Number that replaces the picture's tokens in the radix tree; larger than any token id."""
        return int.from_bytes(self.image.content_hash, "big")

    @property
    def lag(self) -> int:
        """Number of its tokens minus the rotary positions that it takes; 0 without a grid.

        It is below 0 for a long video of few tokens.
        """
        image = self.image
        return image.tokens - extent(image.grid, image.times) if image.grid else 0


def radix_key(tokens: Iterable[int], pictures: Iterable[Picture]) -> tuple[int, ...]:
    """Return tokens as the radix tree stores them: a picture's tokens become its `Picture.key`."""
    key = list(tokens)
    for picture in pictures:
        key[picture.start : picture.end] = [picture.key] * picture.image.tokens
    return tuple(key)


@dataclass(eq=False)
class Sequence:
    """One sample or prompt as the scheduler sees it.

    Args:
        id: name of the sequence in plans.
        tokens: the prompt, not empty; output tokens are appended to it.
        output: receives every new token, logprobs and the end.
        params: sampling parameters.
        seed: seed of this sample.
        priority: sequences with a higher priority are admitted first and preempted last.
        deadline: time on the scheduler's clock at which the sequence is aborted; None for never.
        namespace: namespace in the radix tree; see `radix`.
        logprob_start: index of the first prompt token whose logprob is wanted; None for no prompt
            logprobs. It moves on as prompt tokens are scored.
        after: sequences that must be computed first; their KV becomes the `base`.
        trunk_length: how many leading keys the sequences in `after` have in common.
        gap: positions skipped between `after` and the first own token.
        held: True keeps the KV locked after the prompt is computed, until the sequence that has
            this one in its `after` (the `consumer`) ends.
        constraint: limits the output tokens; None for no limit.
        background: True for a prefetch: computed only while no request needs the model.
        pictures: which tokens stand for pictures.
        parts: lengths of prefixes that end where a part of the prompt ends, for `cuts`.

    Attributes:
        consumer: the sequence that has this one in its `after`; None if there is none.
        base: KV of the sequences in `after`; set when this sequence starts.
        holding: its pool slots; None while it waits and after its slots are released.
        computed: number of leading tokens that have KV.
        cached_tokens: how many tokens came from the cache at the first start; None until then.
        finish_reason: why it ended; None until then.
        arrival: number of the sequence in order of arrival.
        passed_over: how many later arrivals of the same priority have started before it.
        match_node: tree node from which the next look-up in the cache goes on.
        waits_for: a sequence whose running prefill this one waits for, and how many tokens that
            prefill must have computed.
        restore: the read from the disk cache that this sequence waits for, if any.
        cuts: lengths of prefixes after which the recurrent state is snapshotted.
    """

    id: str
    tokens: list[int]
    output: Output
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    priority: int = 0
    deadline: float | None = None
    namespace: Hashable = PLAIN
    logprob_start: int | None = None
    after: tuple[Sequence, ...] = ()
    trunk_length: int = 0
    gap: int = 0
    held: bool = False
    constraint: Constraint | None = None
    background: bool = False
    pictures: tuple[Picture, ...] = ()
    parts: tuple[int, ...] = ()

    prompt_length: int = field(init=False)
    consumer: Sequence | None = field(default=None, init=False, repr=False)
    base: Base = field(default_factory=Base)
    holding: Holding | None = None
    computed: int = 0
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    arrival: int = 0
    passed_over: int = 0
    match_node: Node | None = None
    waits_for: tuple[Sequence, int] | None = None
    restore: Restore | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cuts: set[int] = field(default_factory=set)
    _key: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.tokens, "a sequence needs at least one token"
        if self.logprob_start is not None:
            assert self.params.return_logprob, "prompt scores without logits"
            assert 0 <= self.logprob_start < len(self.tokens), "no such prompt token"
        self.prompt_length = len(self.tokens)

    @property
    def key(self) -> tuple[int, ...]:
        """The tokens as the radix tree stores them (`radix_key`), cached until tokens are added."""
        if len(self._key) != len(self.tokens):
            self._key = radix_key(self.tokens, self.pictures)
        return self._key

    @property
    def output_tokens(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.prompt_length :])

    @property
    def pending(self) -> int:
        """Number of tokens that have no KV yet."""
        return len(self.tokens) - self.computed

    @property
    def remaining(self) -> int:
        """Number of output tokens that `max_new_tokens` still allows."""
        return self.params.max_new_tokens - (len(self.tokens) - self.prompt_length)

    @property
    def prefilling(self) -> bool:
        """True if the next tokens are a prefill chunk; False if a decode step is next."""
        return self.pending > 1 or self.remaining <= 0 or self.logprob_start is not None

    @property
    def wants_logits(self) -> bool:
        """True if tokens are sampled or logprobs wanted; False if only the KV is needed."""
        return self.params.max_new_tokens > 0 or self.params.return_logprob

    @property
    def ready(self) -> bool:
        """True when all sequences in `after` are finished and any restore from disk is done."""
        restored = self.restore is None or self.restore.done
        return restored and all(s.finish_reason is not None for s in self.after)

    @property
    def urgency(self) -> tuple[int, int]:
        """Sort key: higher priority first, then earlier arrival."""
        return -self.priority, self.arrival

    @property
    def purpose(self) -> Sequence:
        """The sequence at the end of the chain of consumers; this one if it has no `consumer`."""
        s = self
        while s.consumer is not None:
            s = s.consumer
        return s

    @property
    def match_limit(self) -> int:
        """How many leading tokens may come from the cache: those whose logits are not needed."""
        limit = len(self.tokens) - 1 if self.wants_logits else len(self.tokens)
        if self.logprob_start is not None:
            limit = min(limit, max(self.logprob_start - 1, 0))
        return limit

    def whole_pictures(self, length: int) -> int:
        """Return `length`, or the start of the picture in which a prefix of that length ends."""
        cut = (p.start for p in self.pictures if p.start < length < p.end)
        return next(cut, length)

    @property
    def until_cut(self) -> int:
        """Number of tokens to compute before the next cut; all pending ones if there is none."""
        ahead = (n - self.computed for n in self.cuts if n > self.computed)
        return min(ahead, default=self.pending)

    @property
    def table(self) -> list[int]:
        assert self.holding is not None, f"sequence {self.id} holds no slots"
        return self.holding.table

    def prefix_slots(self) -> tuple[int, ...]:
        """Return the slots of the base and of all computed tokens."""
        return (*self.base.slots, *self.table[: self.computed])

    def prefix_window(self) -> tuple[int, ...]:
        """Return the window slot of each key in `prefix_slots`, 0 before the window."""
        held = self.holding
        assert held is not None, f"sequence {self.id} holds no slots"
        own = held.window[: max(self.computed - held.behind, 0)]
        return (*self.base.window, *(0,) * (self.computed - len(own)), *own)

    def prefix_positions(self) -> tuple[int, ...]:
        """Return the position of each key in `prefix_slots`."""
        origin = self.base.origin
        return (*self.base.positions, *range(origin, origin + self.computed))

    def join(self) -> None:
        """Set the base to the KV of the sequences in `after`, which must be computed and held.

        The first `trunk_length` keys, which these sequences share, are taken once; then the other
        keys of each sequence in turn.
        """
        slots: list[int] = []
        positions: list[int] = []
        window: list[int] = []
        for i, branch in enumerate(self.after):
            start = self.trunk_length if i else 0
            slots += branch.prefix_slots()[start:]
            positions += branch.prefix_positions()[start:]
            window += branch.prefix_window()[start:]
        ends = [s.base.origin + s.computed for s in self.after]
        origin = max(ends, default=0)
        turned = max((end - s.lag for s, end in zip(self.after, ends, strict=True)), default=0)
        origin, lag = origin + self.gap, origin - turned
        self.base = Base(tuple(slots), tuple(positions), origin, tuple(window), lag)

    @property
    def lag(self) -> int:
        """Position of the next token minus its rotary position (`Row.lag`)."""
        return self.base.lag + sum(p.lag for p in self.pictures if p.end <= self.computed)

    def row(self, count: int, table_end: int, drafted: tuple[int, ...] = ()) -> Row:
        """Make the batch row for the next `count` tokens.

        Args:
            table_end: the row gets the slots of `table` before this index.
            drafted: guesses at the tokens after the next `count`, to verify in the same step.
        """
        start, end = self.computed, self.computed + count
        return Row(
            id=self.id,
            tokens=(*self.tokens[start:end], *drafted),
            prefix=self.prefix_slots(),
            slots=tuple(self.table[start:table_end]),
            position=self.base.origin + start,
            sample=end == len(self.tokens) and self.wants_logits,
            params=self.params,
            seed=self.seed,
            output=self.output_tokens,
            history=tuple(self.tokens) if self.params.repetition_penalty != 1 else (),
            targets=self._targets(end),
            prefix_positions=self.prefix_positions() if self.base.origin else None,
            constraint=self.id if self.constraint is not None else None,
            pictures=tuple(self._parts(start, end)),
            drafted=len(drafted),
            state=self._state_slots(),
            window=self._window_slots(table_end),
            lag=self.lag,
        )

    def _window_slots(self, table_end: int) -> RowWindow | None:
        """Return `Row.window`: without a base, only the keys that still have window slots."""
        held = self.holding
        if held is None or not held.window:
            return None
        new = self.computed - held.behind
        prefix = self.prefix_window() if self.base.slots else tuple(held.window[:new])
        return RowWindow(prefix, tuple(held.window[new : table_end - held.behind]))

    def _state_slots(self) -> tuple[int, int] | None:
        """Return `Row.state`.

        The step reads the sequence's own state if it is ready, else the state of the tree node that
        its prefix comes from, else slot 0 (no tokens yet).
        """
        held = self.holding
        if held is None or not held.state:
            return None
        read = held.state if held.ready else held.source.state if held.source else 0
        return read, held.beside or held.state

    def _parts(self, start: int, end: int) -> Iterator[PicturePart]:
        """Yield the parts of pictures that the tokens `start … end - 1` stand for."""
        for picture in self.pictures:
            first, last = max(picture.start, start), min(picture.end, end)
            if first < last:
                at, seen, image = first - start, first - picture.start, picture.image
                length = last - first
                yield PicturePart(at, seen, length, picture.name, image.grid, image.times)

    def _targets(self, end: int) -> tuple[int, ...]:
        """Return the prompt tokens to score in a step that computes the tokens before `end`."""
        if self.logprob_start is None:
            return ()
        first = max(self.computed + 1, self.logprob_start)
        return tuple(self.tokens[first : min(end + 1, self.prompt_length)])
