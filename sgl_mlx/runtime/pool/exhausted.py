"""Recovery from steps that exhaust the GPU's memory, and from a pool whose content is lost.

A step that exhausts the memory is tried again with half the sequences. MLX raises a RuntimeError
whose text names the cause when a Metal command buffer has failed or an allocation is refused.
"""

from __future__ import annotations

import logging
import re
import traceback
from dataclasses import replace

import mlx.core as mx

from sgl_mlx.machine import device_info
from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.scheduler.plan import Runner
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence

log = logging.getLogger(__name__)

_GIB = 2**30
_FEWEST_TOKENS = 64
"""Limit on a step's tokens below which failures do not halve it further."""

_REFUSED = re.compile(
    r"\[(?:metal::)?malloc\w*\] (?:Attempting|Unable) to allocate (\d+) bytes"
    r"(?: which is greater than the maximum allowed buffer size of (\d+) bytes)?"
)
_REMEDY = "ask for less at once, choose a smaller max_total_tokens or kv_bits=8, or a smaller model"
_CAUSES = {
    "kIOGPUCommandBufferCallbackErrorOutOfMemory": "the GPU ran out of memory",
    "kIOGPUCommandBufferCallbackErrorImpactingInteractivity": (
        "the step kept the GPU from drawing the screen for too long"
    ),
}


def cause(error: Exception) -> str | None:
    """Describe in plain words why a step was too large for the GPU; None for any other error."""
    text = str(error)
    for name, plain in _CAUSES.items():
        if name in text:
            return plain
    refused = _REFUSED.search(text)
    if refused is None:
        return None
    asked, most = refused.groups()
    told = f"the GPU has no room for a buffer of {int(asked) / _GIB:.2f} GiB"
    return told if most is None else f"{told} (at most {int(most) / _GIB:.2f} GiB)"


class Exhausted:
    """Recovery from steps that were too large for the GPU.

    Each failure halves the limits on running sequences and on a step's tokens, and all running
    sequences start over. A sequence that fails alone twice in a row is aborted; then the configured
    limits apply again.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._configured = scheduler.limits
        self._failed_alone: Sequence | None = None

    def recover(self, error: Exception) -> bool:
        """Requeue the running sequences with smaller limits, if a step was too large for the GPU.

        Call it after `Runner.forget_epoch`.

        Returns:
            True; False, with nothing changed, for any other error or if no sequence runs.
        """
        found, running = cause(error), list(self._scheduler.running)
        if found is None or not running:
            return False
        told = f"{found}, with {len(running)} running; {_memory()}"
        alone = running[0] if len(running) == 1 else None
        traceback.clear_frames(error.__traceback__)  # their variables hold the step's arrays
        if alone is not None and alone is self._failed_alone:
            self._scheduler.abort(alone, f"{told}; {_REMEDY}")
            limits = self._configured
        else:
            now = self._scheduler.limits
            limits = replace(
                now,
                max_running=max(len(running) // 2, 1),
                step_tokens=min(now.step_tokens, max(now.step_tokens // 2, _FEWEST_TOKENS)),
            )
            log.warning("%s; trying again with at most %d at once", told, limits.max_running)
        self._failed_alone = alone
        self._scheduler.start_over(limits)
        mx.clear_cache()
        return True


def _memory() -> str:
    recommended = device_info().get("max_recommended_working_set_size")
    told = f"{mx.get_active_memory() / _GIB:.2f} GiB are in use"
    return f"{told}, {int(recommended) / _GIB:.2f} GiB recommended" if recommended else told


def lose_pool(
    scheduler: Scheduler, runner: Runner, error: Exception, transfers: tuple[Transfer, ...] = ()
) -> None:
    """End all requests and forget all KV, after an error that may have corrupted the pool.

    Args:
        transfers: transfers that may not have been carried out.
    """
    runner.forget_epoch()
    scheduler.cache.lose(transfers)
    scheduler.fail_all(told(error))


def told(error: Exception) -> str:
    """Say in one line that a step failed, and how."""
    return f"the step failed: {type(error).__name__}: {error}"
