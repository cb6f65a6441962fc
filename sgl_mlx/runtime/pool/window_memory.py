"""The memory of layers with a sliding window: how many slots their part of the KV pool has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.attention.spans import MOST_HELD
from sgl_mlx.runtime.cache.prefix_cache import WindowSlots
from sgl_mlx.runtime.pool.kv import KVPool, windowed
from sgl_mlx.runtime.pool.memory import ENOUGH, SHARE, left_beside
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits

_GIB = 2**30
_MOST_SHARE = 0.5
"""Share of the KV's memory that layers with a window may take, if no pool size is configured."""


class WindowBudget(NamedTuple):
    """The memory of the layers that have window slots.

    Attributes:
        slots: numbers of their slots; None if all layers have the same slots.
        others: the layers that have ordinary slots.
        nbytes: most bytes of the window slots, and of the copies of them that steps make.
        start_bytes: bytes of the window slots at the start.
    """

    slots: WindowSlots | None
    others: Sequence[LayerShape]
    nbytes: int = 0
    start_bytes: int = 0

    def left(self, available: int) -> int:
        """Return how many of `available` bytes the other layers' pool may count on."""
        return left_beside(self.nbytes, available)


def window_budget(
    layers: Sequence[LayerShape],
    dtype: mx.Dtype,
    kv_bits: int | None,
    wanted: tuple[int | None, int | None],
    limits: SchedulerLimits,
    available: int,
    more: int = 0,
) -> WindowBudget:
    """Choose the number of window slots, if a model has layers with and without a sliding window.

    The slots suffice for all sequences that may run at once, if memory allows; more slots are of
    little use.

    Args:
        kv_bits: see `KVPool`.
        wanted: number of ordinary slots and of window slots that the user asks for; None lets the
            memory decide.
        available: bytes free after loading the weights.
        more: tokens before its window that each sequence keeps for the second tier, if it can.

    Raises:
        MemoryLimitError: if `wanted` slots do not fit, or not even those of one sequence.
    """
    mine = windowed(layers)
    others = [x for i, x in enumerate(layers) if i not in mine]
    if not mine:
        return WindowBudget(None, others)
    kept = [layers[i] for i in sorted(mine)]
    window = max(x.window or 0 for x in kept)
    tokens, slots = wanted
    copy = MOST_HELD * KVPool.bytes_per_slot(kept, dtype)
    each = KVPool.bytes_per_slot(kept, dtype, kv_bits)
    room = available * SHARE
    if tokens is None:
        room *= _MOST_SHARE
    else:
        room -= tokens * KVPool.bytes_per_slot(others, dtype, kv_bits)
    fitting = max(int(room / (each + copy)), 0)
    alone = 2 * window + limits.step_tokens  # twice: of the prefix in the tree, and after it
    least = min(alone, tokens or alone)
    each_row = window + more + limits.epoch_steps
    together = limits.max_running * each_row + limits.step_tokens
    useful = min(max(together, alone), tokens or together + alone)
    most = slots or max(min(useful, fitting), least)
    if slots is not None and slots < min(window, tokens or window):
        raise MemoryLimitError(
            f"max_window_tokens must be at least {window}, the sliding window, got {slots}"
        )
    if most > fitting:
        raise MemoryLimitError(
            f"layers with a sliding window of {window} tokens need {most} slots of {each} bytes = "
            f"{most * each / _GIB:.2f} GiB beside the other layers; there is room for {fitting} "
            f"({SHARE:.0%} of {available / _GIB:.2f} GiB available): choose a smaller "
            "max_total_tokens, max_window_tokens or chunked_prefill_size, or a smaller model"
        )
    first = min(most, tokens or ENOUGH)
    found = WindowSlots(window, first, most)
    return WindowBudget(found, others, int(most * (each + copy)), first * each)
