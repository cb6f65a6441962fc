"""The steps of an engine, recorded while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, StepResult


@dataclass(frozen=True)
class Step:
    """One step of the model: prompt tokens computed and tokens sampled, by request id."""

    computed: dict[str, int]
    sampled: frozenset[str]

    def has(self, rid: str) -> bool:
        return rid in self.computed or rid in self.sampled


@dataclass
class Steps:
    """All steps of the engines that run meanwhile, in order."""

    all: list[Step] = field(default_factory=list)

    def add(self, plan: Plan, result: StepResult) -> None:
        rows = () if isinstance(plan, Decode) else plan.rows
        computed = {row.id: len(row.tokens) for row in rows if not row.output}
        self.all.append(Step(computed, frozenset(result.tokens)))


@contextmanager
def recorded_steps() -> Iterator[Steps]:
    """Record the steps of all engines in this process."""
    steps, run = Steps(), ModelRunner.run

    def recording(runner: ModelRunner, plan: Plan) -> StepResult:
        result = run(runner, plan)
        steps.add(plan, result)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRunner, "run", recording)
        yield steps
