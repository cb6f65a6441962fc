"""One request inside the scheduler.

`computed ≤ len(tokens)` explains every state with two integers: the tokens before `computed` have
KV; a sequence with one token more than that decodes; one with more is being prefilled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.runtime.cache.prefix_cache import Holding
from sgl_mlx.runtime.cache.radix import PLAIN, Node
from sgl_mlx.runtime.cache.restores import Restore

TokenScore = tuple[float | None, int]
"""Log-probability, None where the model was not asked, and token id."""


class Scores(NamedTuple):
    """Log-probabilities of consecutive tokens, and the likeliest tokens at the same places."""

    tokens: tuple[TokenScore, ...] = ()
    top: tuple[tuple[TokenScore, ...], ...] = ()


class Output(Protocol):
    """What becomes of a sequence's tokens; it decides when enough have come."""

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
        """The sequence ended; nothing follows, unless it is `held` and must be computed again."""
        ...


class Constraint(Protocol):
    """Which tokens may come next; see `grammar` and `healing`."""

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


class Shown(Protocol):
    """A picture that is ready to be encoded; what that takes, its owner knows."""

    @property
    def content_hash(self) -> bytes:
        """32 bytes; equal for equal features."""
        ...

    @property
    def tokens(self) -> int:
        """How many features it has."""
        ...


class Picture(NamedTuple):
    """The tokens from `start` on stand for a picture: their embeddings are its features."""

    start: int
    image: Shown

    @property
    def end(self) -> int:
        return self.start + self.image.tokens

    @property
    def key(self) -> int:
        """What its tokens are in the radix tree: far outside any vocabulary."""
        return int.from_bytes(self.image.content_hash, "big")


def radix_key(tokens: Iterable[int], pictures: Iterable[Picture]) -> tuple[int, ...]:
    """The tokens, with those of pictures replaced by what tells pictures apart."""
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
    namespace: Hashable = PLAIN
    logprob_start: int | None = None
    after: tuple[Sequence, ...] = ()
    trunk_length: int = 0
    gap: int = 0
    held: bool = False
    constraint: Constraint | None = None
    background: bool = False
    pictures: tuple[Picture, ...] = ()
    priority: int = 0
    deadline: float | None = None

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
        """Needs prefill chunks; otherwise a decode step computes its one pending token."""
        return self.pending > 1 or self.remaining <= 0 or self.logprob_start is not None

    @property
    def wants_logits(self) -> bool:
        """False for a prompt that is computed for its KV alone."""
        return self.params.max_new_tokens > 0 or self.params.return_logprob

    @property
    def ready(self) -> bool:
        """Everything it comes after has been computed, and what it has to read been read."""
        restored = self.restore is None or self.restore.done
        return restored and all(s.finish_reason is not None for s in self.after)

    @property
    def purpose(self) -> Sequence:
        """The sequence that this one is computed for in the end; itself if it is no branch."""
        s = self
        while s.consumer is not None:
            s = s.consumer
        return s

    @property
    def match_limit(self) -> int:
        """How many tokens may come from the cache: those whose logits nobody wants."""
        limit = len(self.tokens) - 1 if self.wants_logits else len(self.tokens)
        if self.logprob_start is not None:
            limit = min(limit, max(self.logprob_start - 1, 0))
        return limit

    def whole_pictures(self, length: int) -> int:
        """At most `length` leading tokens, so that no picture is cut."""
        cut = (p.start for p in self.pictures if p.start < length < p.end)
        return next(cut, length)

    @property
    def table(self) -> list[int]:
        assert self.holding is not None, f"sequence {self.id} holds no slots"
        return self.holding.table

    def prefix_slots(self) -> tuple[int, ...]:
        """Slots of everything computed, the base included."""
        return (*self.base.slots, *self.table[: self.computed])

    def prefix_positions(self) -> tuple[int, ...]:
        """The position of each key in `prefix_slots`."""
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
