"""Prefixes that left the pool and come back: a model of memory with a second tier."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from sgl_mlx.runtime.cache.loads import load_blocks
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.tier import Load, Spill, Tier
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import Extend
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import FakeRunner, FakeStore, drive
from tests.runtime.scheduler.stories import STORIES, StoryMachine
from tests.runtime.scheduler.test_scheduler import limits
from tests.runtime.truth import Tokens, make_sequence, recorder, run_alone


class TierMachine(StoryMachine):
    """Stories over a pool and a tier of keys and values."""

    @initialize(
        limits=limits,
        capacity=st.integers(12, 48),
        block=st.integers(1, 4),
        worthwhile=st.integers(1, 5),
    )
    def start(self, limits: SchedulerLimits, capacity: int, block: int, worthwhile: int) -> None:
        self.prepare(limits, capacity, Tier(self.store, "the fake", block, worthwhile))


TestTier = TierMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestTier.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)


class Bench:
    """A scheduler over a pool and a store, block size 4, everything worth reading."""

    def __init__(self, capacity: int = 40, **limits: int) -> None:
        self.store = FakeStore()
        self.cache = PrefixCache(capacity, tier=Tier(self.store, "the fake", 4, worthwhile=4))
        self.scheduler = Scheduler(self.cache, SchedulerLimits(**limits))
        self.runner = FakeRunner(self.cache, self.store)
        self._ids = itertools.count()

    def add(self, tokens: Tokens, new: int = 1, background: bool = False) -> Sequence:
        s = make_sequence(self._ids, tokens, new, background=background)
        self.runner.know(s)
        self.scheduler.add(s)
        return s

    def finish(self) -> None:
        drive(self.scheduler, self.runner, store=self.store)

    def turn(self) -> bool:
        plan = self.scheduler.next()
        if plan is not None:
            self.scheduler.commit(plan, self.runner.run(plan))
        self.scheduler.check()
        return plan is not None

    def spill(self, tokens: Tokens) -> None:
        """Compute a prompt and evict it into the store."""
        self.add(tokens)
        self.finish()
        self.cache.spill()
        self.add((3, 3))
        self.finish()


STORY = (1, 2, 3) * 6


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.spill(STORY)
    return made


def test_an_evicted_prefix_comes_back_block_by_block(bench: Bench) -> None:
    s = bench.add((*STORY, 1, 1))
    bench.finish()
    assert s.cached_tokens == 16
    assert bench.scheduler.restored_tokens == 16
    assert recorder(s).tokens == run_alone(s, None).tokens


def test_a_request_that_waits_for_blocks_lets_others_pass(bench: Bench) -> None:
    first, second = bench.add((*STORY, 1)), bench.add((2, 1, 2))
    while second.finish_reason is None:
        assert bench.turn()
    assert first in bench.scheduler.waiting
    assert not bench.turn()  # nothing left but to wait
    bench.finish()
    assert first.cached_tokens == 16


def test_requests_for_one_prefix_read_it_once(bench: Bench) -> None:
    several = [bench.add((*STORY, *end)) for end in ((1, 1), (2, 2), (3, 2))]
    bench.turn()
    assert len(bench.store.readings) == 1
    bench.finish()
    assert all((s.cached_tokens or 0) >= 16 for s in several)


def test_lost_blocks_are_computed_again(bench: Bench) -> None:
    s = bench.add((*STORY, 1, 1))
    bench.turn()
    bench.store.blocks.clear()
    bench.finish()
    assert s.cached_tokens == 0
    assert recorder(s).tokens == run_alone(s, None).tokens


def test_a_prefetch_restores_while_others_decode() -> None:
    bench = Bench(capacity=80)
    bench.spill(STORY)
    busy = bench.add((2, 1), new=30)
    while bench.scheduler.counters.decode_tokens < 3:
        bench.turn()
    wanted = bench.add(STORY[:16], new=0, background=True)
    bench.turn()
    bench.store.finish_reading()
    bench.scheduler.wake()
    bench.turn()
    assert wanted.finish_reason is not None
    assert busy.finish_reason is None
    s = bench.add((*STORY[:16], 1, 1))
    bench.finish()
    assert s.cached_tokens == 16


def test_a_prefetch_is_computed_when_nobody_else_needs_the_model() -> None:
    bench = Bench(step_tokens=8)
    live = bench.add((2, 1), new=12)
    wanted = bench.add(STORY, new=0, background=True)
    while live.finish_reason is None:
        bench.turn()
        assert wanted.holding is None
    bench.finish()
    assert bench.cache.tree.match_length(STORY)[0] == len(STORY)


def test_a_prefetch_gives_way_after_one_chunk_and_keeps_what_it_computed() -> None:
    bench = Bench(step_tokens=8)
    wanted = bench.add(STORY, new=0, background=True)
    bench.turn()
    assert wanted.computed == 8
    live = bench.add((*STORY, 1))
    plan = bench.scheduler.next()
    assert isinstance(plan, Extend)
    assert [row.id for row in plan.rows] == [live.id]
    assert live.cached_tokens == 8
    bench.scheduler.commit(plan, bench.runner.run(plan))
    bench.finish()
    assert bench.scheduler.counters.computed_tokens == len(STORY) + 1
    assert bench.scheduler.counters.preemptions == 0


def test_a_prefetch_of_what_is_resident_computes_nothing() -> None:
    bench = Bench()
    bench.add(STORY)
    bench.finish()
    passes = bench.scheduler.counters.steps
    wanted = bench.add(STORY, new=0, background=True)
    bench.finish()
    assert wanted.finish_reason is not None
    assert bench.scheduler.counters.steps == passes


def test_what_is_read_at_once_fits_the_pool() -> None:
    bench = Bench(capacity=20)
    for story in STORIES[:2]:
        bench.spill(story)
    several = [bench.add((*story, 1)) for story in STORIES[:2]]
    bench.turn()
    assert len(bench.store.readings) == 1
    bench.finish()
    assert [s.cached_tokens for s in several] == [12, 12]


def test_a_flush_spills_nothing_and_keeps_what_is_to_be_loaded() -> None:
    cache = PrefixCache(8, tier=Tier(FakeStore(), "the fake", 4, worthwhile=4))
    assert load_blocks(cache, (1, 2, 3, 1), (), 0, reading=5) == 4
    assert load_blocks(cache, (1, 2, 3, 2), (), 0, reading=6) == 1
    cache.flush()
    first, second = cache.take_transfers()
    assert isinstance(first, Load)
    assert second == Load(second.slots, 6, skip=3)
    cache.check()


def test_spills_and_loads_keep_their_order() -> None:
    cache = PrefixCache(4, tier=Tier(FakeStore(), "the fake", 4, worthwhile=4))
    load_blocks(cache, (1, 2, 3, 1), (), 0, reading=1)
    load_blocks(cache, (2, 2, 2, 2), (), 0, reading=2)
    assert [type(t) for t in cache.take_transfers()] == [Load, Spill, Load]


def test_a_load_that_does_not_fit_or_hangs_in_the_air_changes_nothing() -> None:
    cache = PrefixCache(4, tier=Tier(FakeStore(), "the fake", 4, worthwhile=4))
    assert load_blocks(cache, (1,) * 8, (), 0, reading=1) is None  # more than the pool holds
    assert load_blocks(cache, (1,) * 8, (), 4, reading=2) == 0  # the tree lacks the block before it
    assert cache.slots.free_count == 4
    assert cache.take_transfers() == ()
