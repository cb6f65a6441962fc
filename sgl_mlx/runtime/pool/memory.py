"""Memory beside the weights: how large the KV pool may be, and what MLX's allocator may keep."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx import machine
from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.memory import available_bytes
from sgl_mlx.runtime.attention.spans import MOST_HELD
from sgl_mlx.runtime.pool.kv import KVPool

log = logging.getLogger(__name__)

_GIB = 2**30
_MOST_GARBAGE = 2**29
_SHARE = 0.6
"""Share of the memory left after loading the weights; the rest is for activations and others.
Wiring 75 % and more of a Mac's memory is behind known kernel panics."""
ENOUGH = 32768
"""Slots that a pool begins with if it was given no size."""
_COPY_SHARE = 0.5
"""Share of the memory that the pool leaves, for the prefixes that decoding copies out of it."""
_MOST_OF_MACHINE = 0.75
"""Share of a machine's memory from which it is likely to swap."""
_CACHE_SHARE = 0.05
"""Share of the GPU's recommended working set for buffers that MLX keeps for reuse."""


def pool_slots(
    wanted: int | None,
    context_length: int,
    layers: Sequence[LayerShape],
    dtype: mx.Dtype,
    available: int | None = None,
    kv_bits: int | None = None,
) -> int:
    """Decide the slots that the pool may have: `wanted`, or what fits, up to two contexts.

    A pool that was given no size begins with `ENOUGH` slots and grows when requests need more.

    Args:
        available: bytes free after loading the weights; None asks the machine.
        kv_bits: see `KVPool`.

    Raises:
        MemoryLimitError: if `wanted`, or by default a thousand, do not fit.
    """
    available = available_bytes() if available is None else available
    each = KVPool.bytes_per_slot(layers, dtype, kv_bits)
    usable = int(available * _SHARE)
    fitting = usable // each
    slots = wanted or min(fitting, max(2 * context_length, ENOUGH))
    if slots > fitting or slots < min(1000, wanted or 1000):
        remedy = "" if kv_bits else "; kv_bits=8 makes room for about twice as many"
        raise MemoryLimitError(
            f"a KV pool of {wanted or 1000} tokens does not fit: {wanted or 1000} x {each} bytes = "
            f"{(wanted or 1000) * each / _GIB:.2f} GiB, usable are {usable / _GIB:.2f} GiB "
            f"({_SHARE:.0%} of {available / _GIB:.2f} GiB available): "
            f"at most {fitting} tokens (max_total_tokens){remedy}"
        )
    return slots


def copied_slots(
    slots: int,
    layers: Sequence[LayerShape],
    dtype: mx.Dtype,
    available: int | None = None,
    kv_bits: int | None = None,
) -> int:
    """Count the slots whose keys and values a decode epoch may copy beside a pool of `slots`.

    Args:
        available: bytes free after loading the weights, without the pool; None asks the machine.
        kv_bits: see `KVPool`; copies are in `dtype`.
    """
    available = available_bytes() if available is None else available
    left = available - slots * KVPool.bytes_per_slot(layers, dtype, kv_bits)
    return max(int(left * _COPY_SHARE / (MOST_HELD * KVPool.bytes_per_slot(layers, dtype))), 1)


def warn_if_large(weights: int, pool: int, total: int) -> None:
    """Log a warning when weights and pool (bytes) take most of a machine's `total` memory."""
    if weights + pool > _MOST_OF_MACHINE * total:
        log.warning(
            "weights (%.1f GiB) and KV pool (%.1f GiB) take more than %.0f %% of %.1f GiB of "
            "memory; expect swapping: choose a smaller max_total_tokens or a smaller model",
            weights / _GIB,
            pool / _GIB,
            100 * _MOST_OF_MACHINE,
            total / _GIB,
        )


def limit_cache() -> None:
    """Bound the buffers that MLX's allocator keeps on a GPU, where its default is all memory."""
    recommended = machine.recommended_bytes()
    if recommended:
        mx.set_cache_limit(max(_GIB, int(_CACHE_SHARE * recommended)))


class Garbage:
    """Freed buffers that MLX's allocator keeps, cleared when they exceed `limit` bytes.

    A prefill chunk reads a longer prefix than the one before, so that its buffers have other
    sizes and MLX reuses none of them: without a bound they grow with the square of the prompt.
    Clearing less often keeps what the next step does reuse.
    """

    def __init__(self, pool_bytes: int) -> None:
        self.limit = min(pool_bytes // 8, _MOST_GARBAGE)

    def clear(self) -> None:
        """Give buffers back to the system if there are too many."""
        if mx.get_cache_memory() > self.limit:
            mx.clear_cache()
