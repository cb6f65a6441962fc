"""The scheduler with drafts, right and wrong ones, against the model of memory of `fakes`."""

from __future__ import annotations

import itertools
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.context import ContextDrafter
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.speculator import Speculation
from sgl_mlx.runtime.speculation.tree import TreeDrafter
from tests.runtime.fakes import FakeRunner, drive
from tests.runtime.scheduler.test_scheduler import SchedulerMachine, limits
from tests.runtime.speculation.costs import FREE
from tests.runtime.truth import ALPHABET, make_sequence, recorder, run_alone


class Oracle:
    """Drafter that knows the output, and guesses wrong at random."""

    def __init__(self, seed: int, errors: float) -> None:
        self._random = random.Random(seed)
        self._errors = errors

    def propose(self, s: Sequence, limit: int) -> Proposal | None:
        right = run_alone(s, None).tokens[len(s.output_tokens) :]
        guess = [
            self._random.choice(ALPHABET) if self._random.random() < self._errors else token
            for token in right
        ]
        count = self._random.randint(0, min(limit, len(guess)))
        return Proposal(tuple(guess[:count]), "oracle") if count else None

    def ended(self, s: Sequence) -> None:
        assert s.finish_reason is not None

    def flush(self) -> None:
        pass


class DraftingMachine(SchedulerMachine):
    """All that may happen to the scheduler, with drafts in every step that can hold some."""

    @initialize(
        limits=limits,
        capacity=st.integers(6, 48),
        more_slots=st.integers(0, 60),
        seed=st.integers(0, 99),
        errors=st.sampled_from([0.0, 0.2, 0.7]),
        all_drafters=st.booleans(),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        more_slots: int,
        seed: int,
        errors: float,
        all_drafters: bool,
    ) -> None:
        self.prepare(limits, capacity, more_slots=more_slots)
        others = (ContextDrafter(), TreeDrafter(self.cache.tree)) if all_drafters else ()
        speculation = Speculation((Oracle(seed, errors), *others), FREE)
        self.scheduler = Scheduler(self.cache, limits, lambda: self.now, speculation)
        self.runner = FakeRunner(self.cache, self.store)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "scheduler"):
            counters = self.scheduler.counters
            assert 0 <= counters.accepted_tokens <= counters.drafted_tokens


TestDrafts = DraftingMachine.TestCase
TestDrafts.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, derandomize=True
)


def test_right_drafts_save_steps() -> None:
    steps = {}
    for errors in (0.0, 1.0):
        cache = PrefixCache(200)
        speculation = Speculation((Oracle(1, errors),), FREE)
        scheduler = Scheduler(cache, SchedulerLimits(), speculation=speculation)
        steps[errors] = _steps(scheduler, FakeRunner(cache))
    assert steps[0.0] < steps[1.0] / 2


def _steps(scheduler: Scheduler, runner: FakeRunner) -> int:
    s = make_sequence(itertools.count(), (1, 2, 3), 40)
    runner.know(s)
    scheduler.add(s)
    drive(scheduler, runner)
    assert recorder(s).tokens == run_alone(s, None).tokens
    return scheduler.counters.steps
