"""A request inside the scheduler.

`computed ≤ len(tokens)` explains every state with two integers: the tokens before `computed` have
KV; a sequence with one token more than that decodes; one with more is being prefilled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.runtime.cache.prefix_cache import Holding
from sgl_mlx.runtime.cache.radix import PLAIN, Node
from sgl_mlx.runtime.cache.restores import Restore
from sgl_mlx.runtime.scheduler.plan import PicturePart, Row, Scores, Shown


class Output(Protocol):
    """The receiver of a sequence's tokens; it decides when enough have come."""

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        """Take the next token, sampled or forced; the reason if it is the last."""
        ...

    def score_prompt(self, scores: Scores) -> None:
        """Take logprobs of further prompt tokens, in order."""
        ...

    def score_next(self, scores: Scores) -> None:
        """Take logprobs at the position after a prompt that is not continued."""
        ...

    def finish(self, reason: FinishReason) -> None:
        """Take the reason of the end; more follows only if a `held` sequence is recomputed."""
        ...


class Constraint(Protocol):
    """A rule for which tokens may come next; see `grammar` and `healing`."""

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""
        ...

    @property
    def done(self) -> bool:
        """Anything may follow from now on."""
        ...

    @property
    def error(self) -> str | None:
        """Why nothing may follow at all."""
        ...

    def allowed(self) -> bytes:
        """The tokens that may come next, a bit each, the first in the lowest bit."""
        ...

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        ...

    def forced(self) -> list[int]:
        """Take, and return, the tokens that must come next."""
        ...


class Base(NamedTuple):
    """KV that stands before a sequence's own tokens, computed by other sequences.

    Made from branches encoded side by side (`core.Parallel`) or from text before a position gap
    (`core.Shift`). `positions[i]` is the position the key in `slots[i]` was computed at; the
    sequence's own tokens start at position `origin`.
    """

    slots: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    origin: int = 0


class Picture(NamedTuple):
    """The tokens from `start` on stand for a picture: their embeddings are its features."""

    start: int
    image: Shown

    @property
    def end(self) -> int:
        return self.start + self.image.tokens

    @property
    def name(self) -> str:
        """Names the content in plans; equal for equal features."""
        return self.image.content_hash.hex()

    @property
    def key(self) -> int:
        """Stands for its tokens in the radix tree: far outside any vocabulary."""
        return int.from_bytes(self.image.content_hash, "big")


def radix_key(tokens: Iterable[int], pictures: Iterable[Picture]) -> tuple[int, ...]:
    """Replace the tokens of each picture by its `key`."""
    key = list(tokens)
    for picture in pictures:
        key[picture.start : picture.end] = [picture.key] * picture.image.tokens
    return tuple(key)


@dataclass(eq=False)
class Sequence:
    """A request as the scheduler sees it.

    Args:
        id: names the request in plans.
        tokens: the prompt, not empty; the output is appended to it.
        pictures: which of them stand for pictures.
        output: told of every new token and of the end.
        params: sampling; `max_new_tokens` bounds the output.
        seed: of this sample's noise.
        priority: a higher one is admitted first and preempted last.
        deadline: when the sequence is aborted, finished or not, on `time.monotonic`'s scale.
        namespace: of the radix tree; see `radix`.
        logprob_start: first prompt token whose logprob is wanted; None for none.
        after: sequences that must be computed first; their KV becomes the `base`.
        trunk_length: how many leading keys those have in common.
        gap: positions skipped between them and the first own token.
        constraint: on the output.
        held: the KV stays locked after the prompt is computed, until the sequence that has this
            one in its `after` (its `consumer`) ends.
        background: computed for its KV alone, when nobody else needs the model.
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
    _key: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.tokens, "a sequence needs at least one token"
        if self.logprob_start is not None:
            assert self.params.return_logprob, "prompt scores without logits"
            assert 0 <= self.logprob_start < len(self.tokens), "no such prompt token"
        self.prompt_length = len(self.tokens)

    @property
    def key(self) -> tuple[int, ...]:
        """The tokens as the radix tree knows them, made once while the sequence waits."""
        if len(self._key) != len(self.tokens):
            self._key = radix_key(self.tokens, self.pictures)
        return self._key

    @property
    def output_tokens(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.prompt_length :])

    @property
    def pending(self) -> int:
        """Tokens that have no KV yet."""
        return len(self.tokens) - self.computed

    @property
    def remaining(self) -> int:
        """Tokens it may still generate."""
        return self.params.max_new_tokens - (len(self.tokens) - self.prompt_length)

    @property
    def prefilling(self) -> bool:
        """True while it needs prefill chunks; else a decode step computes its one pending token."""
        return self.pending > 1 or self.remaining <= 0 or self.logprob_start is not None

    @property
    def wants_logits(self) -> bool:
        """False for a prompt that is computed for its KV alone."""
        return self.params.max_new_tokens > 0 or self.params.return_logprob

    @property
    def ready(self) -> bool:
        """True when all it comes after is finished and any restore from disk is done."""
        restored = self.restore is None or self.restore.done
        return restored and all(s.finish_reason is not None for s in self.after)

    @property
    def urgency(self) -> tuple[int, int]:
        """Sorts sequences: higher priority first, then by arrival."""
        return -self.priority, self.arrival

    @property
    def purpose(self) -> Sequence:
        """The sequence that this one is computed for; itself if it is no branch."""
        s = self
        while s.consumer is not None:
            s = s.consumer
        return s

    @property
    def match_limit(self) -> int:
        """How many tokens may come from the cache: only tokens whose logits are not wanted."""
        limit = len(self.tokens) - 1 if self.wants_logits else len(self.tokens)
        if self.logprob_start is not None:
            limit = min(limit, max(self.logprob_start - 1, 0))
        return limit

    def whole_pictures(self, length: int) -> int:
        """Shorten `length` leading tokens where that many would cut a picture."""
        cut = (p.start for p in self.pictures if p.start < length < p.end)
        return next(cut, length)

    @property
    def table(self) -> list[int]:
        assert self.holding is not None, f"sequence {self.id} holds no slots"
        return self.holding.table

    def prefix_slots(self) -> tuple[int, ...]:
        """List the slots of all computed tokens, the base included."""
        return (*self.base.slots, *self.table[: self.computed])

    def prefix_positions(self) -> tuple[int, ...]:
        """List the position of each key in `prefix_slots`."""
        origin = self.base.origin
        return (*self.base.positions, *range(origin, origin + self.computed))

    def join(self) -> None:
        """Make the base from the sequences in `after`, all computed and held.

        They agree in their first `trunk_length` keys; what each has beyond stands side by side.
        """
        slots: list[int] = []
        positions: list[int] = []
        for i, branch in enumerate(self.after):
            start = self.trunk_length if i else 0
            slots += branch.prefix_slots()[start:]
            positions += branch.prefix_positions()[start:]
        origin = max((s.base.origin + s.computed for s in self.after), default=0) + self.gap
        self.base = Base(tuple(slots), tuple(positions), origin)

    def row(self, count: int, table_end: int) -> Row:
        """Make the row of the next `count` tokens, with the slots up to `table_end`."""
        start, end = self.computed, self.computed + count
        return Row(
            id=self.id,
            tokens=tuple(self.tokens[start:end]),
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
        )

    def _parts(self, start: int, end: int) -> Iterator[PicturePart]:
        """Find the parts of pictures that the tokens from `start` to `end` stand for."""
        for picture in self.pictures:
            first, last = max(picture.start, start), min(picture.end, end)
            if first < last:
                yield PicturePart(first - start, first - picture.start, last - first, picture.name)

    def _targets(self, end: int) -> tuple[int, ...]:
        """List the prompt tokens that the logits of the tokens up to `end` score."""
        if self.logprob_start is None:
            return ()
        first = max(self.computed + 1, self.logprob_start)
        return tuple(self.tokens[first : min(end + 1, self.prompt_length)])
