"""Running a plan, and going on when that fails."""

from __future__ import annotations

from dataclasses import replace

from sgl_mlx.runtime.scheduler.plan import Decode, Plan, Runner, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler


def run_plan(plan: Plan, scheduler: Scheduler, runner: Runner) -> StepResult | None:
    """Return the result of a plan; None if it failed, and the scheduler was told.

    The pool is brought up to date first. So a step that fails loses the KV of its own tokens and
    of its own epoch alone, and its rows can be tried again.
    """
    if not isinstance(plan, Decode) or plan.opening:
        try:
            runner.synchronise(plan.transfers)
        except Exception as error:
            lose_pool(scheduler, runner, error)
            return None
        plan = replace(plan, transfers=())
    try:
        return runner.run(plan)
    except Exception as error:
        runner.forget_epoch()
        scheduler.retry(plan, _told(error))
        return None


def lose_pool(scheduler: Scheduler, runner: Runner, error: Exception) -> None:
    """End all requests and forget all KV, because the pool may hold anything."""
    runner.forget_epoch()
    scheduler.fail_all(_told(error))


def _told(error: Exception) -> str:
    return f"the step failed: {type(error).__name__}: {error}"
