"""Recurrent states under the scheduler: every row reads the state of its own prefix, always."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sgl_mlx.runtime.cache.loads import load_snapshot
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import PLAIN
from sgl_mlx.runtime.cache.state_tier import StateTier
from sgl_mlx.runtime.cache.tier import GrowStates, LoadState, Tier
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.cuts import SnapshotPolicy
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import FakeStore, drive
from tests.runtime.scheduler.stories import StoryMachine
from tests.runtime.scheduler.test_retry import FailingText, FaultyRunner, run_plan
from tests.runtime.scheduler.test_scheduler import SchedulerMachine, limits, stops, tokens
from tests.runtime.state_fakes import StateRunner, StateStore
from tests.runtime.truth import Tokens, make_sequence, recorder, run_alone

policies = st.builds(
    SnapshotPolicy,
    st.sampled_from(["program", "program", "program", "every", "off"]),
    st.integers(1, 8),
)
state_limits = limits.flatmap(
    lambda made: policies.map(lambda policy: SchedulerLimits(**{**vars(made), "snapshots": policy}))
)


class StateMachine(SchedulerMachine):
    """Anything may be added, aborted and preempted; no sequence comes after branches."""

    runner: StateRunner

    @initialize(
        limits=state_limits,
        capacity=st.integers(6, 60),
        most_tokens=st.integers(1, 3),
        states=st.integers(1, 12),
        first_states=st.integers(1, 12),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        most_tokens: int,
        states: int,
        first_states: int,
    ) -> None:
        self.prepare_states(limits, capacity, states, first_states=first_states)
        self.runner = StateRunner(self.cache, self.store, most_tokens)

    def prepare_states(
        self, limits: SchedulerLimits, capacity: int, states: int, **options: Any
    ) -> None:
        self.now = 0.0
        self.store: FakeStore = StateStore()
        self.cache = PrefixCache(capacity, states=states, **options)
        self.scheduler = Scheduler(self.cache, limits, lambda: self.now)
        self.ids = itertools.count()
        self.added: list[Sequence] = []
        self.expected = {}

    def add_fork(self) -> None:  # type: ignore[override]
        """Keys and values side by side: refused for these models."""

    add_nested_fork = add_fork  # type: ignore[assignment]
    add_urgent = add_fork  # type: ignore[assignment]

    @rule(
        tokens=tokens,
        new=st.integers(0, 8),
        priority=st.integers(-1, 2),
        patience=st.none() | st.integers(0, 4),
    )
    def add_hasty(self, tokens: Tokens, new: int, priority: int, patience: int | None) -> None:
        s = make_sequence(self.ids, tokens, new)
        s.priority, s.deadline = priority, None if patience is None else self.now + patience
        self._add(s)

    @rule(
        trunk=tokens,
        ends=st.lists(tokens | st.just(()), min_size=2, max_size=4),
        new=st.integers(0, 4),
        parts=st.lists(st.integers(0, 16), max_size=3).map(tuple),
        stop=stops,
    )
    def add_siblings(
        self, trunk: Tokens, ends: list[Tokens], new: int, parts: Tokens, stop: frozenset[int]
    ) -> None:
        for end in ends:
            s = make_sequence(self.ids, trunk + end, new, stop=stop)
            s.parts = parts
            self._add(s)

    @precondition(lambda self: hasattr(self, "scheduler"))
    @invariant()
    def states_fit(self) -> None:
        snapshots = self.cache.snapshots
        assert snapshots is not None
        assert snapshots.held + snapshots.cached <= snapshots.capacity
        assert snapshots.held <= len(self.scheduler.running) + len(self.scheduler._queues.ended)
        epoch = self.scheduler._epoch
        for s in self.scheduler.running:
            began = epoch.starts.get(s.id) if epoch is not None else None
            if s.holding is not None and s.holding.ready and (began is None or began[1]):
                assert s.holding.source is None, "pinned longer than it is read"
        if self.scheduler.limits.snapshots.kind == "off":
            assert not snapshots.taken

    def _fits(self, s: Sequence) -> bool:
        states = self.cache.tree.states
        assert states is not None
        unread = any(node.state and not node.readers for node in self.cache.tree.nodes())
        return super()._fits(s) and bool(unread and states.slots.free_count)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "scheduler"):
            snapshots = self.cache.snapshots
            assert snapshots is not None
            assert snapshots.held == 0
            self.runner.check_snapshots()
            assert not any(node.readers for node in self.cache.tree.nodes())
            self.cache.flush()
            assert snapshots.cached == 0
            self.scheduler.check()


TestStates = StateMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestStates.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, derandomize=True
)


class StateTierMachine(StoryMachine, StateMachine):
    """Stories of a model with recurrent states, which the tier keeps too."""

    @initialize(
        limits=state_limits,
        capacity=st.integers(12, 48),
        states=st.integers(1, 8),
        block=st.integers(1, 4),
        worthwhile=st.integers(1, 5),
        layers=st.booleans(),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        states: int,
        block: int,
        worthwhile: int,
        layers: bool,
    ) -> None:
        store = StateStore()
        tier = Tier(store, "the fake", block, worthwhile, layers)
        self.prepare_states(limits, capacity, states, tier=tier, state_tier=StateTier(tier))
        self.store = store
        self.runner = StateRunner(self.cache, self.store)
        self.runner.checks_keys = layers


TestStateTier = StateTierMachine.TestCase
TestStateTier.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)


class FaultyStateRunner(FaultyRunner, StateRunner):
    """A faulty runner with recurrent states, which a failed step leaves as they were."""


class StateRetryMachine(FailingText, StateMachine):
    """Steps fail at random, in chunks of prompts and in epochs with a step ahead."""

    @initialize(
        limits=state_limits,
        capacity=st.integers(6, 60),
        states=st.integers(1, 12),
        hiccups=st.sets(st.integers(1, 60), max_size=6),
        most_rows=st.sampled_from([2, 1000, 1000]),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        states: int,
        hiccups: set[int],
        most_rows: int,
    ) -> None:
        self.prepare_states(limits, capacity, states)
        self.runner = self.poisoned = FaultyStateRunner(self.cache, self.store)
        self.poisoned.hiccups, self.poisoned.most_rows = hiccups, most_rows


TestStateRetry = StateRetryMachine.TestCase
TestStateRetry.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=True
)


@pytest.mark.parametrize("call", range(1, 12))
def test_a_state_of_a_lost_epoch_does_not_stay_in_a_path_that_others_hold(call: int) -> None:
    """One sequence ends in the middle of what another one, which decodes beside it, was given."""
    ids = itertools.count()
    short = make_sequence(ids, (1, 2, 3, 1, 2), 4)
    said = run_alone(short, None).tokens
    long = make_sequence(ids, (*short.tokens, *said, 2, 2, 1), 12)
    cache = PrefixCache(100, states=12)
    scheduler = Scheduler(cache, SchedulerLimits(in_flight_sharing=False))
    runner = FaultyStateRunner(cache)
    runner.hiccups = {call}
    for s in (short, long):
        runner.know(s)
        scheduler.add(s)
    drive(scheduler, runner, run=partial(run_plan, scheduler=scheduler, runner=runner))
    runner.flush()
    runner.check_snapshots()
    assert cache.snapshots is not None
    assert cache.snapshots.cached > 0
    for s in (short, long):
        assert recorder(s).tokens == run_alone(s, None).tokens


def test_a_pool_that_was_to_grow_in_a_lost_step_grows_in_the_next() -> None:
    ids = itertools.count()
    cache = PrefixCache(60, states=8, first_states=1)
    scheduler = Scheduler(cache, SchedulerLimits())
    runner = StateRunner(cache)
    for _ in range(2):
        for i in range(3):
            s = make_sequence(ids, (1 + i, 2, 3), 2)
            runner.know(s)
            scheduler.add(s)
        plan = scheduler.next()
        assert plan is not None
        assert [type(t) for t in plan.transfers].count(GrowStates) > 0
        runner.lose_everything()
        scheduler.fail_all("the step failed")
    s = make_sequence(ids, (3, 2, 1), 3)
    runner.know(s)
    scheduler.add(s)
    drive(scheduler, runner)
    assert recorder(s).tokens == run_alone(s, None).tokens


def test_a_flush_keeps_what_is_to_be_loaded() -> None:
    """Otherwise nobody would take the reading."""
    tier = Tier(StateStore(), "the fake", 4, worthwhile=4)
    states = StateTier(tier)
    cache = PrefixCache(20, tier=tier, states=2, state_tier=states)
    assert load_snapshot(cache, states, (1, 2, 3), PLAIN, reading=7) == 3
    assert load_snapshot(cache, states, (1, 2, 3), PLAIN, reading=8) is None  # it is there already
    assert load_snapshot(cache, states, (2,) * 6, PLAIN, reading=9) is None  # a block is missing
    cache.flush()
    [load] = cache.take_transfers()
    assert isinstance(load, LoadState)
    assert (load.reading, len(load.slots), load.skip) == (7, 3, 0)
    cache.check()
