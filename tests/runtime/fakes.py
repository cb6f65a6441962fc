"""A runner that models memory: what each slot holds, and what each row needs it to hold.

It writes when the real runner writes, an epoch's KV only when the epoch is over, and asserts on
every row that each prefix slot holds the KV needed there: a slot that is reused, freed or shared
too early shows up at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.tier import Grow, Load, Spill, Transfer
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import (
    Decode,
    Extend,
    Plan,
    Row,
    RunnerStats,
    Scores,
    StepResult,
)
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.verify import accept
from tests.runtime.truth import (
    NO_FORK,
    Context,
    Fork,
    Kv,
    Tokens,
    Truth,
    family,
    make_sequence,
    next_token,
    score,
)


class FakeReading:
    """Blocks that are read when the test says so."""

    def __init__(self, id: int, store: FakeStore, keys: Seq[str]) -> None:
        self.id = id
        self.done = False
        self.count = 0
        self.kv: list[Kv] = []
        self._store, self._keys = store, keys

    def finish(self) -> None:
        for key in self._keys:
            if key not in self._store.blocks:
                break
            self.kv += self._store.blocks[key]
            self.count += 1
        self.done = True


class FakeStore:
    """A second tier in memory. With `full` it takes nothing more.

    `readings` are under way; `held` those whose KV is neither loaded nor dropped yet.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, list[Kv]] = {}
        self.readings: list[FakeReading] = []
        self.held: dict[int, FakeReading] = {}
        self.full = False
        self._ids = itertools.count()

    def has(self, key: str) -> bool:
        return key in self.blocks

    def keys(self) -> set[str]:
        return set(self.blocks)

    def read(self, keys: Seq[str]) -> FakeReading:
        reading = FakeReading(next(self._ids), self, keys)
        self.readings.append(reading)
        self.held[reading.id] = reading
        return reading

    def drop(self, reading: int) -> None:
        del self.held[reading]

    def finish_reading(self) -> bool:
        """False if nothing is being read."""
        readings, self.readings = self.readings, []
        for reading in readings:
            reading.finish()
        return bool(readings)

    def move(self, transfers: Seq[Transfer], memory: dict[int, Kv]) -> None:
        """Make the transfers of a plan, as a runner does before it."""
        for transfer in transfers:
            if isinstance(transfer, Spill):
                size = len(transfer.slots) // len(transfer.keys)
                for i, key in enumerate(transfer.keys):
                    block = [memory[slot] for slot in transfer.slots[i * size : (i + 1) * size]]
                    assert self.blocks.get(key, block) == block, "one key for two contents"
                    if not self.full:
                        self.blocks[key] = block
            elif isinstance(transfer, Load):
                kv = self.held.pop(transfer.reading).kv
                for i, slot in enumerate(transfer.slots):
                    memory[slot] = kv[transfer.skip + i]


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
    """See the module. It runs all rows of an epoch to its end, finished or not, as a runner may.

    Args:
        most_tokens: tokens that it returns for one row of an `Extend`, at most.
    """

    def __init__(
        self, cache: PrefixCache, store: FakeStore | None = None, most_tokens: int = 1
    ) -> None:
        self._most_tokens = most_tokens
        self.memory: dict[int, Kv] = {}
        self._store = store or FakeStore()
        self.sequences: dict[str, Sequence] = {}
        self.plans: list[Plan] = []
        self._cache = cache
        self._size = cache.capacity
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
        self._grow(plan)
        if isinstance(plan, Extend):
            self._last = None
            return self._extend(plan)
        return self._decode(plan)

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        self.flush()
        self._enlarge(transfers)
        self._store.move(transfers, self.memory)

    def forget_epoch(self) -> None:
        self._tails.clear()
        self._rows, self._last = (), None

    def stats(self) -> RunnerStats:
        return RunnerStats()

    def _enlarge(self, transfers: tuple[Transfer, ...]) -> None:
        grown = [t.slots for t in transfers if isinstance(t, Grow)]
        assert grown == sorted(grown)
        self._size = max([self._size, *grown])

    def _grow(self, plan: Plan) -> None:
        """Follow the pool's size; all slots of a plan lie within it."""
        self._enlarge(plan.transfers)
        rows = plan.rows if isinstance(plan, Extend) else plan.opening
        assert all(max((0, *row.slots, *row.prefix)) <= self._size for row in rows)

    # -- extend -------------------------------------------------------------------------------

    def _extend(self, plan: Extend) -> StepResult:
        self.flush()
        self._store.move(plan.transfers, self.memory)
        assert plan.rows, "an empty step"
        self._check_rows(plan.rows)
        result = StepResult({})
        for row in plan.rows:
            assert len(row.slots) == len(row.tokens)
            truth = self._feed(row)
            start = row.position - truth.origin
            decided = len(row.tokens) - row.drafted
            for i, slot in enumerate(row.slots[:decided]):
                self.memory[slot] = truth.context.keys[truth.base_length + start + i]
            if row.drafted:
                self._verify(row, truth, decided, result)
            else:
                self._score(row, truth, start, result)
        return result

    def _verify(self, row: Row, truth: Truth, decided: int, result: StepResult) -> None:
        assert row.sample
        assert not row.targets
        keys = truth.context.keys[: len(row.prefix) + decided]
        context = Context(self.sequences[row.id].namespace, keys)
        seen = [context.digests[-1]]
        for i in range(decided, len(row.tokens)):
            kv = context.feed(row.tokens[i], row.position + i)
            self.memory[row.slots[i]] = kv
            seen.append(context.digests[-1])
        tokens = accept(row, tuple(map(next_token, seen)))
        result.tokens[row.id] = tokens
        if row.params.return_logprob:
            found = tuple(score(d, t) for d, t in zip(seen, tokens, strict=False))
            result.token_scores[row.id] = Scores(found)

    def _score(self, row: Row, truth: Truth, start: int, result: StepResult) -> None:
        digests = [truth.digest(start + i + 1) for i in range(len(row.tokens))]
        if row.targets:
            first = len(row.tokens) - len(row.targets) - row.sample
            assert first >= 0
            pairs = zip(digests[first:], row.targets, strict=False)
            result.prompt_scores[row.id] = Scores(tuple(score(d, t) for d, t in pairs))
        if row.sample:
            seen = self._look_ahead(row, truth)
            result.tokens[row.id] = tuple(map(next_token, seen))
            if row.params.return_logprob:
                found = tuple(score(d, next_token(d)) for d in seen)
                result.token_scores[row.id] = Scores(found)

    def _look_ahead(self, row: Row, truth: Truth) -> list[int]:
        """The digests after which tokens are sampled: the row's last one and some beyond it."""
        namespace, keys = self.sequences[row.id].namespace, truth.context.keys
        context, position = Context(namespace, keys), row.position + len(row.tokens)
        seen = [context.digests[-1]]
        while len(seen) < self._most_tokens:
            context.feed(next_token(seen[-1]), position)
            position += 1
            seen.append(context.digests[-1])
        return seen

    # -- decode -------------------------------------------------------------------------------

    def _decode(self, plan: Decode) -> StepResult:
        if plan.opening:
            self.flush()
            self._store.move(plan.transfers, self.memory)
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
            token = next_token(digest)
            result.tokens[id_] = (token,)
            assert self._steps <= len(self._tails[id_].slots), "no slot for a token that counts"
            if self.sequences[id_].params.return_logprob:
                result.token_scores[id_] = Scores((score(digest, token),))
        return result

    def flush(self) -> None:
        """Write the epoch's KV to the pool, that of discarded steps and ended rows too."""
        for tail in self._tails.values():
            self.memory.update(zip(tail.slots, tail.keys, strict=False))
        self._tails.clear()
        self._rows = ()

    def lose_everything(self) -> None:
        """A step failed half way: no slot holds what it should."""
        self.forget_epoch()
        self.memory.clear()

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
            decided = row.tokens[: len(row.tokens) - row.drafted]
            assert decided == tuple(s.tokens[start : start + len(decided)])
            assert not row.drafted or start + len(decided) == len(s.tokens)
            positions = row.prefix_positions
            if positions is None:
                positions = tuple(range(len(row.prefix)))
            assert list(positions) == [key.position for key in needed]
            assert row.output == s.output_tokens[: len(row.output)]

    def _feed(self, row: Row) -> Truth:
        truth = self._truths[row.id]
        truth.feed(self.sequences[row.id].tokens)
        return truth


def drive(
    scheduler: Scheduler,
    runner: FakeRunner,
    turns: int = 10_000,
    store: FakeStore | None = None,
    run: Callable[[Plan], StepResult | None] | None = None,
) -> int:
    """Turn the scheduler until it is idle, checking it each time; the number of turns."""
    for turn in range(turns):
        plan = scheduler.next()
        scheduler.check()
        if plan is None and store is not None and store.finish_reading():
            scheduler.wake()
            continue
        if plan is None:
            assert scheduler.idle, "nothing to do, but sequences wait"
            return turn
        result = (run or runner.run)(plan)
        if result is not None:
            scheduler.commit(plan, result)
        scheduler.check()
    raise AssertionError(f"not idle after {turns} turns")


class Engine:
    """A scheduler and a runner."""

    def __init__(self, capacity: int = 1000, **limits: Any) -> None:
        self.scheduler = Scheduler(PrefixCache(capacity), SchedulerLimits(**limits))
        self.runner = FakeRunner(self.scheduler.cache)
        self._ids = itertools.count()

    def add(self, tokens: Iterable[int], new: int, fork: Fork = NO_FORK) -> Sequence:
        s = make_sequence(self._ids, tuple(tokens), new, fork)
        self.runner.know(s)
        self.scheduler.add(s)
        return s

    def turn(self) -> Plan:
        plan = self.scheduler.next()
        assert plan is not None
        self.scheduler.commit(plan, self.runner.run(plan))
        return plan

    def finish(self) -> None:
        drive(self.scheduler, self.runner)
