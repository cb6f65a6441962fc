"""Sequences whose KV and output are known by definition.

The KV of a token is a digest of everything the token can see and of its position, so two keys are
equal exactly when a transformer's would be; the next token is a function of that digest.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.runtime.cache.radix import PLAIN
from sgl_mlx.runtime.scheduler.plan import Scores, TokenScore
from sgl_mlx.runtime.scheduler.sequence import Base, Sequence

Tokens = tuple[int, ...]
ALPHABET = (1, 2, 3)


class Kv(NamedTuple):
    content: int
    position: int


class Context:
    """Keys in order, and after each of them the digest of all so far: the fake's logits."""

    def __init__(self, namespace: Hashable, keys: list[Kv]) -> None:
        self.keys: list[Kv] = []
        self.digests: list[int] = [zlib.crc32(repr(namespace).encode())]
        for key in keys:
            self._append(key)

    def feed(self, token: int, position: int) -> Kv:
        key = Kv(hash((self.digests[-1], token, position)), position)
        self._append(key)
        return key

    def _append(self, key: Kv) -> None:
        self.keys.append(key)
        self.digests.append(hash((self.digests[-1], key)))


def next_token(digest: int) -> int:
    # the remainder of a digest by a small number repeats itself; its middle bits do not
    return ALPHABET[(digest >> 16) % len(ALPHABET)]


def score(digest: int, target: int) -> TokenScore:
    return float(hash((digest, target)) % 1009), target


@dataclass(frozen=True)
class Fork:
    """Branches `trunk + end` side by side, after another fork or nothing; then a gap.

    Without ends there are no branches, only the gap.
    """

    trunk: Tokens
    ends: tuple[Tokens, ...]
    gap: int = 0
    before: Fork | None = None

    @property
    def length(self) -> int:
        return self.trunk_length + sum(map(len, self.ends))

    @property
    def trunk_length(self) -> int:
        return (self.before.length if self.before else 0) + len(self.trunk)


NO_FORK = Fork((), ())


@dataclass
class Recorder:
    """Stops at `stop` tokens and keeps all that the scheduler tells it."""

    stop: frozenset[int] = frozenset()
    stop_after: int = 0
    held: bool = False
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    next_scores: list[TokenScore] = field(default_factory=list)
    reason: FinishReason | None = None

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        assert self.reason is None, "a token after the end"
        self.tokens.append(token)
        self.scores += scores.tokens if scores else ()
        if token in self.stop and len(self.tokens) > self.stop_after:
            return FinishReason("stop", matched=token)
        return None

    def score_prompt(self, scores: Scores) -> None:
        assert self.reason is None, "a score after the end"
        self.prompt_scores += scores.tokens

    def score_next(self, scores: Scores) -> None:
        assert not self.next_scores
        self.next_scores += scores.tokens

    def finish(self, reason: FinishReason) -> None:
        assert self.reason is None or self.held, "two ends"  # a held branch may be computed again
        self.reason = reason


def make_sequence(
    ids: Iterator[int],
    tokens: Tokens,
    max_new_tokens: int = 0,
    fork: Fork = NO_FORK,
    logprob_start: int | None = None,
    stop: frozenset[int] = frozenset(),
    held: bool = False,
    return_logprob: bool = False,
    stop_after: int = 0,
    background: bool = False,
) -> Sequence:
    """A sequence after `fork`, with fresh sequences for the fork's branches."""
    after = tuple(
        make_sequence(ids, fork.trunk + end, fork=fork.before or NO_FORK, held=True)
        for end in fork.ends
    )
    return Sequence(
        id=f"s{next(ids)}",
        tokens=list(tokens),
        output=Recorder(stop=stop, stop_after=stop_after, held=held),
        params=SamplingParams(
            max_new_tokens=max_new_tokens,
            return_logprob=return_logprob or logprob_start is not None,
        ),
        namespace=PLAIN if fork == NO_FORK else fork,
        logprob_start=logprob_start,
        after=after,
        trunk_length=fork.trunk_length,
        gap=fork.gap,
        base=Base(origin=fork.gap),
        held=held,
        background=background,
    )


def recorder(s: Sequence) -> Recorder:
    assert isinstance(s.output, Recorder)
    return s.output


def family(s: Sequence) -> Iterator[Sequence]:
    yield s
    for needed in s.after:
        yield from family(needed)


class Truth:
    """The KV and output of a sequence, from its definition alone."""

    def __init__(self, s: Sequence) -> None:
        self.prompt: list[int] = s.tokens[: s.prompt_length]
        self.origin = s.gap
        keys: list[Kv] = []
        for i, branch in enumerate([Truth(b) for b in s.after]):
            branch.feed_prompt()
            keys += branch.context.keys[s.trunk_length if i else 0 :]
            self.origin = max(self.origin, branch.origin + len(branch.prompt) + s.gap)
        self.base_length = len(keys)
        self.context: Context = Context(s.namespace, keys)
        self._fed = 0

    def feed_prompt(self) -> None:
        self.feed(self.prompt)

    def feed(self, tokens: list[int]) -> Context:
        """The context after `tokens`, a continuation of those fed before."""
        for token in tokens[self._fed :]:
            self.context.feed(token, self.origin + self._fed)
            self._fed += 1
        return self.context

    def digest(self, length: int) -> int:
        """The fake's logits after `length` own tokens."""
        return self.context.digests[self.base_length + length]


class Alone(NamedTuple):
    tokens: list[int]
    scores: list[TokenScore]
    prompt_scores: list[TokenScore]
    next_scores: list[TokenScore]
    reason: FinishReason


def run_alone(s: Sequence, logprob_start: int | None) -> Alone:
    """The outcome that a sequence must have whatever it is batched with."""
    truth = Truth(s)
    truth.feed_prompt()
    told = Recorder(recorder(s).stop, recorder(s).stop_after)
    if logprob_start is not None:
        for i in range(max(logprob_start, 1), s.prompt_length):
            told.prompt_scores.append(score(truth.digest(i), truth.prompt[i]))
    tokens = list(truth.prompt)
    limit = s.params.max_new_tokens
    reason = FinishReason("length", length=limit)
    for _ in range(limit):
        digest = truth.feed(tokens).digests[-1]
        tokens.append(next_token(digest))
        scores = Scores((score(digest, tokens[-1]),)) if s.params.return_logprob else None
        if (stopped := told.push(tokens[-1], scores)) is not None:
            reason = stopped
            break
    if limit == 0 and s.params.return_logprob:
        digest = truth.context.digests[-1]
        told.next_scores.append(score(digest, next_token(digest)))
    return Alone(told.tokens, told.scores, told.prompt_scores, told.next_scores, reason)
