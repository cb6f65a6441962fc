"""A model of a model: sequences whose KV is known by definition, and a runner that checks it.

The KV of a token is a digest of everything the token can see and of its position, so two keys are
equal exactly when a transformer's would be. `FakeRunner` keeps what is in every slot, writes when
the real runner writes, and asserts on every row that each prefix slot holds the KV needed there.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.runtime.plan import Decode, Extend, Plan, Row, StepResult
from sgl_mlx.runtime.prefix_cache import PrefixCache
from sgl_mlx.runtime.radix import PLAIN
from sgl_mlx.runtime.scheduler import Scheduler
from sgl_mlx.runtime.sequence import Base, Scores, Sequence, TokenScore

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

    def push(self, token: int, scores: Scores | None) -> FinishReason | None:
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
    )


def recorder(s: Sequence) -> Recorder:
    assert isinstance(s.output, Recorder)
    return s.output


def family(s: Sequence) -> Iterator[Sequence]:
    yield s
    for needed in s.after:
        yield from family(needed)


class Truth:
    """What a sequence's KV and output must be, from its definition alone."""

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
    """What a sequence must give whatever it is batched with."""
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


@dataclass
class _Tail:
    """KV of one row of an epoch, not yet in the pool."""

    slots: Tokens
    context: Context
    position: int
    token: int
    keys: list[Kv] = field(default_factory=list)

    def step(self) -> None:
        self.keys.append(self.context.feed(self.token, self.position))
        self.position += 1
        self.token = next_token(self.context.digests[-1])


class FakeRunner:
    """See the module. It runs all rows of an epoch to its end, finished or not, as a runner may."""

    def __init__(self, cache: PrefixCache) -> None:
        self.memory: dict[int, Kv] = {}
        self.sequences: dict[str, Sequence] = {}
        self.plans: list[Plan] = []
        self._cache = cache
        self._truths: dict[str, Truth] = {}
        self._tails: dict[str, _Tail] = {}
        self._rows: tuple[Row, ...] = ()
        self._steps = self._submitted = 0
        self._last: Decode | None = None

    def know(self, s: Sequence) -> None:
        for member in family(s):
            self.sequences[member.id] = member
            self._truths[member.id] = Truth(member)

    def run(self, plan: Plan) -> StepResult:
        self.plans.append(plan)
        self._check_promise(plan)
        if isinstance(plan, Extend):
            self._last = None
            return self._extend(plan)
        return self._decode(plan)

    # -- extend -------------------------------------------------------------------------------

    def _extend(self, plan: Extend) -> StepResult:
        self.flush()
        assert plan.rows, "an empty step"
        self._check_rows(plan.rows)
        result = StepResult({})
        for row in plan.rows:
            assert len(row.slots) == len(row.tokens)
            truth = self._feed(row)
            start = row.position - truth.origin
            for i, slot in enumerate(row.slots):
                self.memory[slot] = truth.context.keys[truth.base_length + start + i]
            self._score(row, truth, start, result)
        return result

    @staticmethod
    def _score(row: Row, truth: Truth, start: int, result: StepResult) -> None:
        digests = [truth.digest(start + i + 1) for i in range(len(row.tokens))]
        if row.targets:
            assert row.score_start >= 0
            pairs = zip(digests[row.score_start :], row.targets, strict=False)
            result.prompt_scores[row.id] = Scores(tuple(score(d, t) for d, t in pairs))
        if row.sample:
            result.tokens[row.id] = next_token(digests[-1])
            if row.params.return_logprob:
                found = score(digests[-1], result.tokens[row.id])
                result.token_scores[row.id] = Scores((found,))

    # -- decode -------------------------------------------------------------------------------

    def _decode(self, plan: Decode) -> StepResult:
        if plan.opening:
            self.flush()
            self._open(plan)
        assert plan.ids, "an empty step"
        assert set(plan.ids) <= set(self._last.ids if self._last else self._tails)
        self._last = plan
        self._steps += 1
        assert self._steps <= plan.width
        self._check_prefixes(self._rows)
        while self._submitted < self._steps + plan.ahead:
            self._submitted += 1
            for tail in self._tails.values():
                tail.step()
        return self._result(plan)

    def _open(self, plan: Decode) -> None:
        assert {row.id for row in plan.opening} == set(plan.ids)
        self._check_rows(plan.opening)
        self._steps = self._submitted = 0
        self._last = None
        self._rows = plan.opening
        for row in plan.opening:
            assert len(row.tokens) == 1
            assert row.sample
            truth = self._truths[row.id]
            keys = truth.context.keys[: len(row.prefix)]
            context = Context(self.sequences[row.id].namespace, keys)
            self._tails[row.id] = _Tail(row.slots, context, row.position, row.tokens[0])

    def _result(self, plan: Decode) -> StepResult:
        result = StepResult({})
        for id_ in plan.ids:
            context = self._tails[id_].context
            digest = context.digests[len(context.digests) - 1 - (self._submitted - self._steps)]
            result.tokens[id_] = next_token(digest)
            assert self._steps <= len(self._tails[id_].slots), "no slot for a token that counts"
            if self.sequences[id_].params.return_logprob:
                result.token_scores[id_] = Scores((score(digest, result.tokens[id_]),))
        return result

    def flush(self) -> None:
        """Write the epoch's KV to the pool, that of discarded steps and ended rows too."""
        for tail in self._tails.values():
            self.memory.update(zip(tail.slots, tail.keys, strict=False))
        self._tails.clear()
        self._rows = ()

    def lose_everything(self) -> None:
        """A step failed half way: no slot holds what it should."""
        self._tails.clear()
        self.memory.clear()
        self._rows, self._last = (), None

    # -- checks -------------------------------------------------------------------------------

    def _check_promise(self, plan: Plan) -> None:
        """A step submitted ahead must be asked for next, for all rows that still live."""
        if self._last is not None and self._last.ahead:
            live = {i for i in self._last.ids if self.sequences[i].finish_reason is None}
            if live:
                assert isinstance(plan, Decode)
                assert not plan.opening
                assert live <= set(plan.ids)

    def _check_rows(self, rows: tuple[Row, ...]) -> None:
        self._check_prefixes(rows)
        written = [slot for row in rows for slot in row.slots]
        assert 0 not in written
        assert len(set(written)) == len(written), "one slot for two tokens"
        shared = set(self._cache.tree.slots()).union(*(row.prefix for row in rows))
        assert not shared.intersection(written), "writes over KV in use"

    def _check_prefixes(self, rows: tuple[Row, ...]) -> None:
        for row in rows:
            s, truth = self.sequences[row.id], self._feed(row)
            needed = truth.context.keys[: len(row.prefix)]
            start = len(row.prefix) - truth.base_length
            assert [self.memory.get(slot) for slot in row.prefix] == needed, row
            assert row.position == truth.origin + start
            assert row.tokens == tuple(s.tokens[start : start + len(row.tokens)])
            positions = row.prefix_positions
            if positions is None:
                positions = tuple(range(len(row.prefix)))
            assert list(positions) == [key.position for key in needed]
            assert row.output == s.output_tokens[: len(row.output)]

    def _feed(self, row: Row) -> Truth:
        truth = self._truths[row.id]
        truth.feed(self.sequences[row.id].tokens)
        return truth


def drive(scheduler: Scheduler, runner: FakeRunner, turns: int = 10_000) -> int:
    """Turn the scheduler until it is idle, checking it each time; the number of turns."""
    for turn in range(turns):
        plan = scheduler.next()
        scheduler.check()
        if plan is None:
            assert scheduler.idle, "nothing to do, but sequences wait"
            return turn
        scheduler.commit(plan, runner.run(plan))
        scheduler.check()
    raise AssertionError(f"not idle after {turns} turns")
