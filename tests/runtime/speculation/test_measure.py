"""Steps are measured once, on slots that hold nothing, and kept for later engines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, RunnerStats, StepResult
from sgl_mlx.runtime.speculation.measure import forget_costs, kept_costs, measure


class Timed:
    """A runner whose steps take as long as their tokens, on a clock that it moves itself."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.now = 0.0
        self.plans: list[Plan] = []
        self.noise: Iterator[float] = (0.0 for _ in count())

    def clock(self) -> float:
        return self.now

    def run(self, plan: Plan) -> StepResult:
        self.plans.append(plan)
        rows = plan.rows if isinstance(plan, Extend) else plan.opening
        used = [slot for row in rows for slot in (*row.prefix, *row.slots)]
        assert all(1 <= slot <= self.slots for slot in used)
        written = [slot for row in rows for slot in row.slots]
        assert len(set(written)) == len(written)
        tokens = len(plan.ids) if isinstance(plan, Decode) else sum(len(r.tokens) for r in rows)
        self.now += 1.0 + 0.1 * tokens + next(self.noise)
        return StepResult({row.id: (0,) for row in rows})

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        pass

    def forget_epoch(self) -> None:
        pass

    def stats(self) -> RunnerStats:
        return RunnerStats()


@pytest.mark.parametrize("slots", [8, 40, 300, 5000])
def test_costs_are_those_of_the_runner(slots: int) -> None:
    runner = Timed(slots)
    costs = measure(runner, slots, clock=runner.clock)
    for size, seconds in costs.extend:
        assert seconds == pytest.approx(1 + 0.1 * size)
    for size, seconds in costs.decode:
        assert seconds == pytest.approx(1 + 0.1 * size)


def test_a_burst_of_other_work_is_not_measured() -> None:
    runner = Timed(5000)
    runner.noise = (30.0 if 10 < i < 25 else 0.0 for i in count())
    costs = measure(runner, 5000, clock=runner.clock)
    assert costs.of_extend(8) == pytest.approx(1.8)
    assert costs.of_decode(8) == pytest.approx(1.8)


def test_costs_are_kept_until_they_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runner = Timed(500)
    first = kept_costs("a model", 500, runner)
    measured = len(runner.plans)
    assert first is not None
    assert kept_costs("a model", 500, runner) == first
    assert len(runner.plans) == measured
    kept_costs("another model", 500, runner)
    assert len(runner.plans) > measured
    [file, _] = tmp_path.rglob("costs-*.json")
    for broken in ("", "[]", '{"extend": [], "decode": []}', '{"extend": [[1, "x"]]}'):
        for each in tmp_path.rglob("costs-*.json"):
            each.write_text(broken)
        assert kept_costs("a model", 500, runner) is not None
    forget_costs()
    assert not file.exists()


def test_what_cannot_be_measured_drafts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Failing(Timed):
        def run(self, plan: Plan) -> StepResult:
            raise RuntimeError("out of memory")

    assert kept_costs("a model", 500, Failing(500)) is None
    assert "out of memory" in caplog.text
