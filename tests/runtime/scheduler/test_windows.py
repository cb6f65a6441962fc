"""Slots of windowed layers under the scheduler: every row finds its window, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache, WindowSlots
from sgl_mlx.runtime.cache.tier import GrowWindows, Tier
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import Plan, StepResult
from sgl_mlx.runtime.scheduler.queues import TOO_SMALL
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.speculator import Speculation
from tests.runtime.fakes import Engine, drive
from tests.runtime.scheduler.test_retry import FailingText, FaultyRunner
from tests.runtime.scheduler.test_scheduler import SchedulerMachine, limits, stops, tokens
from tests.runtime.speculation.costs import FREE
from tests.runtime.speculation.test_scheduler_drafts import Oracle
from tests.runtime.truth import (
    ALPHABET,
    Tokens,
    family,
    make_sequence,
    recorder,
    run_alone,
)
from tests.runtime.window_fakes import WindowRunner

EXAMPLES = int(os.environ.get("SGL_MLX_WINDOW_EXAMPLES", "350"))
"""Stories of each machine: 350 of both machines together run over 10,000 steps of a model."""


class WindowMachine(SchedulerMachine):
    """All that may happen to the scheduler, forks and drafts included, with few window slots."""

    runner: WindowRunner
    errors: float | None = None

    @initialize(
        limits=limits,
        capacity=st.integers(6, 60),
        more_slots=st.integers(0, 60),
        window=st.integers(2, 6),
        first=st.integers(1, 30),
        more=st.integers(0, 30),
        errors=st.sampled_from([None, None, 0.0, 0.2, 0.7]),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        more_slots: int,
        window: int,
        first: int,
        more: int,
        errors: float | None,
    ) -> None:
        self.prepare_windows(limits, capacity, more_slots, WindowSlots(window, first, first + more))
        self.runner = WindowRunner(self.cache, self.store)
        if errors is not None:
            speculation = Speculation((Oracle(window, errors),), FREE)
            self.scheduler = Scheduler(self.cache, limits, lambda: self.now, speculation)

    def prepare_windows(
        self,
        limits: SchedulerLimits,
        capacity: int,
        more_slots: int,
        windows: WindowSlots,
        tier: Tier | None = None,
    ) -> None:
        self.now = 0.0
        most = capacity + more_slots
        self.cache = PrefixCache(capacity, tier=tier, most=most, windows=windows)
        self.scheduler = Scheduler(self.cache, limits, lambda: self.now)
        self.ids = itertools.count()
        self.added: list[Sequence] = []
        self.expected = {}

    @rule(
        trunk=tokens,
        ends=st.lists(tokens | st.just(()), min_size=2, max_size=4),
        new=st.integers(0, 4),
        stop=stops,
    )
    def add_siblings(
        self, trunk: Tokens, ends: list[Tokens], new: int, stop: frozenset[int]
    ) -> None:
        for end in ends:
            self._add(make_sequence(self.ids, trunk + end, new, stop=stop))

    @precondition(lambda self: hasattr(self, "scheduler"))
    @invariant()
    def nothing_is_kept_behind_a_window(self) -> None:
        """A row that runs has slots of its window, of an epoch's steps and of one chunk at most.

        With a second tier, it also has those that make up whole blocks with its window.
        """
        windows = self.cache.windows
        assert windows is not None
        epoch = self.scheduler._epoch
        for s in self.scheduler.running:
            assert s.holding is not None
            steps = 0 if epoch is None or s.id not in epoch.starts else epoch.steps
            assert s.computed - steps - s.holding.behind <= windows.kept

    def _fits(self, s: Sequence) -> bool:
        windows = self.cache.windows
        assert windows is not None
        holding = self.cache.open(s.key[: s.match_limit], s.namespace)
        need = min(len(s.tokens) - holding.shared, self.scheduler.limits.step_tokens)
        margin = self.scheduler.limits.decode_margin * (len(self.scheduler.running) + 1)
        fits = need + margin <= windows.available
        self.cache.close(holding)
        return fits and super()._fits(s)

    def _check_outcome(self, s: Sequence) -> None:
        message = s.finish_reason.message if s.finish_reason is not None else None
        windows = self.cache.windows
        assert windows is not None
        members = len(list(family(s)))
        if message == TOO_SMALL and windows.most < 2 * members * windows.reach + 1:
            told, alone = recorder(s), self.expected[s.id]
            assert told.tokens == alone.tokens[: len(told.tokens)]
        else:
            super()._check_outcome(s)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "scheduler"):
            windows = self.cache.windows
            assert windows is not None
            assert windows.held == 0
            assert windows.available == windows.most
            self.runner.check_tree()
            self.cache.flush()
            assert windows.stats().window_free == windows.capacity
            self.scheduler.check()


TestWindows = WindowMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestWindows.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, derandomize=True
)


class FaultyWindowRunner(FaultyRunner, WindowRunner):
    """A faulty runner with windowed layers: what a failed step was to write there is lost too."""

    def run(self, plan: Plan) -> StepResult:
        before = self.failures
        try:
            return super().run(plan)
        finally:
            if self.failures > before:
                rows = getattr(plan, "rows", self._rows)
                lost = [slot for row in rows if row.window for slot in row.window.slots]
                self.window.update(dict.fromkeys(lost, None))  # type: ignore[arg-type]


class WindowRetryMachine(FailingText, WindowMachine):
    """Steps fail at random, in chunks of prompts and in epochs with a step ahead."""

    @initialize(
        limits=limits,
        capacity=st.integers(6, 60),
        window=st.integers(2, 6),
        slots=st.integers(4, 60),
        hiccups=st.sets(st.integers(1, 60), max_size=6),
        most_rows=st.sampled_from([2, 1000, 1000]),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        window: int,
        slots: int,
        hiccups: set[int],
        most_rows: int,
    ) -> None:
        self.prepare_windows(limits, capacity, 0, WindowSlots(window, slots, slots))
        self.runner = self.poisoned = FaultyWindowRunner(self.cache, self.store)
        self.poisoned.hiccups, self.poisoned.most_rows = hiccups, most_rows


TestWindowRetry = WindowRetryMachine.TestCase
TestWindowRetry.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, derandomize=True
)


def engine_of(slots: int, window: int = 5, **options: int) -> Engine:
    """An engine with window slots for `slots` tokens, and all other slots it may need."""
    engine = Engine(**options)
    cache = PrefixCache(1000, windows=WindowSlots(window, slots, slots))
    engine.scheduler = Scheduler(cache, SchedulerLimits(**options))
    engine.runner = WindowRunner(cache)
    return engine


def story(seed: int, length: int) -> Tokens:
    return tuple(random.Random(seed).choices(ALPHABET, k=length))


def test_with_enough_slots_every_prefix_is_reused() -> None:
    engine, prompt = engine_of(500), story(1, 40)
    engine.add(prompt, 20)
    engine.finish()
    for length in range(1, 40):
        s = engine.add((*prompt[:length], 4), 1)
        engine.finish()
        assert s.cached_tokens == length


def test_when_slots_are_short_ends_of_prompts_and_answers_can_still_be_continued() -> None:
    engine, prompt = engine_of(60, step_tokens=8), story(1, 30)
    first = engine.add(prompt, 20)
    engine.finish()
    answer = tuple(first.tokens[30:])
    engine.add(story(2, 45), 10)
    engine.finish()
    windows = engine.scheduler.cache.windows
    assert windows is not None
    assert windows.stats().window_evicted > 0
    asked = {29: prompt, 30: (*prompt, 4), 49: (*prompt, *answer, 4), 0: (*prompt[:15], 4)}
    for reused, again in asked.items():
        s = engine.add(again, 1)
        engine.finish()
        assert s.cached_tokens == reused


def test_those_that_wait_for_a_prefix_compute_none_of_it_though_slots_are_short() -> None:
    engine, trunk = engine_of(40, step_tokens=8, decode_margin=0), story(1, 35)
    for i in range(4):
        engine.add((*trunk, *story(10 + i, 15)), 3)
    engine.finish()
    windows, counters = engine.scheduler.cache.windows, engine.scheduler.counters
    assert windows is not None
    assert windows.stats().window_evicted > 0
    assert counters.computed_tokens < 35 + 4 * 15 + 4


def test_the_least_recent_ends_go_first() -> None:
    engine = engine_of(40)
    stories = [story(i, 12) for i in range(9)]
    for told in stories:
        engine.add(told, 1)
        engine.finish()
    seen = []
    for told in reversed(stories):
        s = engine.add((*told, 4), 1)
        engine.finish()
        seen.append(s.cached_tokens)
    assert seen[:3] == [12] * 3
    assert seen[-1] < 5  # what stories have in common


def test_a_pool_of_windows_grows_when_rows_need_it_and_again_after_a_lost_step() -> None:
    cache = PrefixCache(200, windows=WindowSlots(6, 2, 60))
    scheduler, ids = Scheduler(cache, SchedulerLimits()), itertools.count()
    runner = WindowRunner(cache)
    for _ in range(2):
        s = make_sequence(ids, story(1, 20), 2)
        runner.know(s)
        scheduler.add(s)
        plan = scheduler.next()
        assert plan is not None
        assert [type(t) for t in plan.transfers].count(GrowWindows) > 0
        runner.lose_everything()
        scheduler.fail_all("the step failed")
    s = make_sequence(ids, (3, 2, 1), 3)
    runner.know(s)
    scheduler.add(s)
    drive(scheduler, runner)
    assert recorder(s).tokens == run_alone(s, None).tokens
