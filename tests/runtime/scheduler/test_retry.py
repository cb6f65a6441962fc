"""A step that fails is tried again without the row that makes it fail."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.loop import run_plan
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, StepResult
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import Engine, FakeRunner, drive
from tests.runtime.scheduler.test_scheduler import (
    SchedulerMachine,
    few_tokens,
    forks,
    limits,
    tokens,
)
from tests.runtime.truth import NO_FORK, Fork, Tokens, family, make_sequence, recorder, run_alone

FAULT = "the step failed: ZeroDivisionError: poisoned"
KINDS = ("extend", "decode", "either")


class Broken(BaseException):
    """A plan that breaks a rule of the fake runner; no `Exception`, which would be tried again."""


class FaultyRunner(FakeRunner):
    """A runner whose steps fail at poisoned tokens, and leave nothing right where they wrote.

    Args:
        poison: by sequence id, the first position of its own that cannot be computed, and in
            which kind of step.
        hiccups: numbers of the calls that fail whatever they compute.
        most_rows: a step of more rows fails.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.poison: dict[str, tuple[int, str]] = {}
        self.hiccups: set[int] = set()
        self.most_rows = 1000
        self.calls = self.failures = 0
        self._reserved: dict[str, tuple[int, ...]] = {}

    def run(self, plan: Plan) -> StepResult:
        self.calls += 1
        if isinstance(plan, Decode) and plan.opening:
            self._reserved = {row.id: row.slots for row in plan.opening}
        if self.calls in self.hiccups or self._too_large(plan) or any(self._hurt(plan)):
            self.failures += 1
            for slots in self._written(plan):
                self.memory.update(dict.fromkeys(slots, None))  # type: ignore[arg-type]
            raise ZeroDivisionError("poisoned")
        try:
            return super().run(plan)
        except AssertionError as error:  # a broken rule is no step that failed
            raise Broken from error

    def _too_large(self, plan: Plan) -> bool:
        rows = plan.rows if isinstance(plan, Extend) else plan.ids
        return len(rows) > self.most_rows

    def _written(self, plan: Plan) -> list[tuple[int, ...]]:
        if isinstance(plan, Extend):
            return [row.slots for row in plan.rows]
        return list(self._reserved.values())

    def _hurt(self, plan: Plan) -> list[str]:
        """The poisoned rows of a plan, those of the step that it submits ahead among them."""
        kind = "extend" if isinstance(plan, Extend) else "decode"
        ends = (
            {row.id: row.position - self._origin(row.id) + len(row.tokens) for row in plan.rows}
            if isinstance(plan, Extend)
            else {id_: self.sequences[id_].computed + 1 + plan.ahead for id_ in plan.ids}
        )
        found = {id_: self.poison[id_] for id_ in ends if id_ in self.poison}
        return [i for i, (at, where) in found.items() if ends[i] > at and where in (kind, "either")]

    def _origin(self, id_: str) -> int:
        return self.sequences[id_].base.origin


def engine_of(
    rows: int, new: int = 8, **limits: Any
) -> tuple[Engine, FaultyRunner, list[Sequence]]:
    """An engine with a faulty runner and rows that wait."""
    engine = Engine(**limits)
    engine.runner = faulty = FaultyRunner(engine.scheduler.cache)
    return engine, faulty, [engine.add([1 + i % 3, i % 2, i], new) for i in range(rows)]


def finish(engine: Engine) -> None:
    run = partial(run_plan, scheduler=engine.scheduler, runner=engine.runner)
    drive(engine.scheduler, engine.runner, run=run)


def assert_right(rows: Iterable[Sequence]) -> None:
    for s in rows:
        assert recorder(s).tokens == run_alone(s, None).tokens
        assert s.finish_reason == FinishReason("length", length=s.params.max_new_tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 3, 4, 5, 8])
@pytest.mark.parametrize("guilty", [0, 5, 15])
def test_one_of_sixteen_rows_is_found_by_halves(kind: str, at: int, guilty: int) -> None:
    engine, faulty, rows = engine_of(16)
    faulty.poison[rows[guilty].id] = (at, kind)
    finish(engine)
    found = rows[guilty].finish_reason == FinishReason("abort", message=FAULT)
    assert found or kind != "either"
    assert_right(s for s in rows if s is not rows[guilty] or not found)
    assert faulty.failures <= 5 or kind != "either"  # steps of 16, 8, 4, 2 rows and one


def test_a_step_that_is_too_large_for_any_runner_is_halved_and_nobody_ends() -> None:
    engine, faulty, rows = engine_of(5, step_tokens=16)
    faulty.most_rows = 2
    finish(engine)
    assert faulty.failures > 0
    assert_right(rows)


@pytest.mark.parametrize("call", range(1, 12))
def test_a_fault_that_comes_once_ends_nobody(call: int) -> None:
    for count in (1, 3):
        engine, faulty, rows = engine_of(count)
        faulty.hiccups = {call}
        finish(engine)
        assert_right(rows)


def test_when_every_row_is_at_fault_all_end_and_the_next_one_runs() -> None:
    engine, faulty, rows = engine_of(4)
    faulty.poison = {s.id: (4, "either") for s in rows}
    finish(engine)
    assert {s.finish_reason for s in rows} == {FinishReason("abort", message=FAULT)}
    later = engine.add([1, 2, 3], 5)
    finish(engine)
    assert_right([later])


def test_what_ended_in_an_epoch_that_was_lost_is_not_in_the_cache() -> None:
    engine, faulty, rows = engine_of(2, new=3)
    longer = engine.add([2, 2], 12)
    faulty.poison[longer.id] = (8, "decode")
    finish(engine)
    assert_right(rows)
    again = engine.add([*rows[0].tokens, 1], 4)
    finish(engine)
    assert again.cached_tokens == 0
    assert_right([again])


class FailingMachine(SchedulerMachine):
    """A machine whose runner `poisoned` fails steps; only rows at fault may end for that."""

    poisoned: FaultyRunner

    def fail_the_step(self) -> None:
        """Everything is lost in the other machine alone."""

    def _run(self, plan: Plan) -> StepResult | None:
        return run_plan(plan, self.scheduler, self.runner)

    def _check_plan(self, plan: Plan | None) -> None:
        if self.scheduler._trials is None:
            super()._check_plan(plan)

    def _check_outcome(self, s: Sequence) -> None:
        if s.finish_reason is not None and s.finish_reason.message == FAULT:
            guilty = [m.id for m in family(s) if m.id in self.poisoned.poison]
            alone_too_often = self.poisoned.hiccups or self.poisoned.most_rows < 3
            assert guilty or alone_too_often, "a row that is not at fault ended"
        super()._check_outcome(s)


class FailingText(FailingMachine):
    """A failing machine whose rows at fault follow no branches."""

    @rule(
        tokens=tokens,
        new=st.integers(0, 8),
        at=st.integers(0, 9),
        kind=st.sampled_from(KINDS),
    )
    def add_poison(self, tokens: Tokens, new: int, at: int, kind: str) -> None:
        s = make_sequence(self.ids, tokens, new)
        self.poisoned.poison[s.id] = (at, kind)
        self._add(s)


class RetryMachine(FailingMachine):
    """Rows poison steps at random, in chunks of prompts and in epochs with a step ahead."""

    @initialize(
        limits=limits,
        capacity=st.integers(6, 48),
        more_slots=st.integers(0, 60),
        hiccups=st.sets(st.integers(1, 60), max_size=6),
        most_rows=st.sampled_from([2, 1000, 1000]),
    )
    def start(  # type: ignore[override]
        self,
        limits: SchedulerLimits,
        capacity: int,
        more_slots: int,
        hiccups: set[int],
        most_rows: int,
    ) -> None:
        self.prepare(limits, capacity, more_slots=more_slots)
        self.runner = self.poisoned = FaultyRunner(self.cache, self.store)
        self.poisoned.hiccups, self.poisoned.most_rows = hiccups, most_rows

    @rule(
        tokens=few_tokens,
        new=st.integers(0, 8),
        at=st.integers(0, 9),
        kind=st.sampled_from(KINDS),
        fork=forks(st.none()) | st.just(NO_FORK),
        branch=st.booleans(),
    )
    def add_poison(
        self, tokens: Tokens, new: int, at: int, kind: str, fork: Fork, branch: bool
    ) -> None:
        s = make_sequence(self.ids, tokens, new, fork=fork)
        members = list(family(s))
        self.poisoned.poison[members[-1 if branch else 0].id] = (at, kind)
        self._add(s)


TestRetry = RetryMachine.TestCase
TestRetry.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
