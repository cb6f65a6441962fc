"""Computing a plan of a scheduler with a runner, and what follows when that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, PoolLost, Runner, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler


def run_plan(
    plan: Plan,
    scheduler: Scheduler,
    runner: Runner,
    recover: Callable[[Exception], bool] = lambda _: False,
) -> StepResult | None:
    """Compute a plan; return its result, or None after a failure that the scheduler has handled.

    Unless the plan continues an epoch (a run of decode steps with the same rows), the KV of earlier
    steps is written to the pool first. So a failed step loses only the KV of its own tokens and of
    its epoch, and its sequences can be tried again.

    Args:
        recover: called with the error of a failed step; returns True if it has handled the error.
    """
    if not isinstance(plan, Decode) or plan.opening:
        try:
            runner.synchronise(plan.transfers)
        except Exception as error:
            lose_pool(scheduler, runner, error, plan.transfers)
            return None
        plan = replace(plan, transfers=())
    try:
        return runner.run(plan)
    except PoolLost as error:
        lose_pool(scheduler, runner, error)
        return None
    except Exception as error:
        runner.forget_epoch()
        if not recover(error):
            scheduler.retry(plan, _told(error))
        return None


def lose_pool(
    scheduler: Scheduler, runner: Runner, error: Exception, transfers: tuple[Transfer, ...] = ()
) -> None:
    """End all requests and forget all KV, after an error that may have corrupted the pool.

    Args:
        transfers: transfers that may not have been carried out.
    """
    runner.forget_epoch()
    scheduler.cache.lose(transfers)
    scheduler.fail_all(_told(error))


def _told(error: Exception) -> str:
    return f"the step failed: {type(error).__name__}: {error}"
