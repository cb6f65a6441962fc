"""The observed pace of steps corrects the measured costs, and so the choice of drafts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.speculation.pace import Pace

ROWS = frozenset({"a", "b"})


class Clock:
    """Clock that stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Steps:
    """An engine whose steps should all take one second, by the table."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)

    def step(self, elapsed: float, extends: bool = False, rows: frozenset[str] = ROWS) -> None:
        self.pace.begin(rows, 1.0)
        if extends:
            self.pace.extends(1.0)
        self.clock.now += elapsed
        self.pace.observe(rows)


@given(st.floats(0.3, 7), st.floats(0.3, 7))
def test_factors_approach_what_is_observed(extend: float, decode: float) -> None:
    """Decode steps as long as all, then extends; the first decode step of each run is long."""
    steps = Steps()
    for _ in range(60):
        steps.step(decode)
    for _ in range(60):
        steps.step(extend, extends=True)
    assert abs(steps.pace.decode - decode) < 0.01 * decode
    assert abs(steps.pace.extend - extend) < 0.01 * max(extend, decode)


def test_opening_an_epoch_is_charged_to_the_extend_that_ends_it() -> None:
    steps = Steps()
    for _ in range(60):
        steps.step(1.0, extends=True)
        steps.step(4.0)
        for _ in range(3):
            steps.step(1.0)
    assert steps.pace.decode == 1.0
    assert 3.5 < steps.pace.extend < 4.1


def test_drafting_is_tried_again_after_it_was_too_slow() -> None:
    steps = Steps()
    for _ in range(20):
        steps.step(6.0, extends=True)
    assert steps.pace.extend > 5
    for _ in range(500):
        steps.step(1.0)
    assert steps.pace.extend < 1.1


def test_a_step_is_not_observed_if_sequences_came_or_went_or_if_it_prefilled() -> None:
    steps = Steps()
    for others in (frozenset({"a"}), frozenset({"a", "b", "c"}), frozenset[str]()):
        steps.pace.begin(ROWS, 1.0)
        steps.clock.now += 5
        steps.pace.observe(others)
    steps.pace.begin(ROWS, 1.0)
    steps.pace.extends(None)
    steps.clock.now += 5
    steps.pace.observe(ROWS)
    assert (steps.pace.extend, steps.pace.decode) == (1.0, 1.0)


def test_one_interrupted_step_moves_a_factor_little() -> None:
    steps = Steps()
    steps.step(1.0)
    steps.step(1000.0)
    assert steps.pace.decode < 3
