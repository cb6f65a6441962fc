"""Memory limits: the size of the KV pool, and the freed buffers that MLX's allocator may keep."""

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
_FEWEST = 1000
"""Fewest slots that a pool has if no size is configured."""
SHARE = 0.6
"""The pool's share of the memory left after loading the weights; the rest is for activations and
other programs. Wiring 75 % or more of a Mac's memory has caused kernel panics."""
ENOUGH = 32768
"""Most slots that a pool starts with if no size is configured; it grows when needed."""
_COPY_SHARE = 0.5
"""Share of the memory outside the pool that the prefixes copied out of the pool may take."""
_DENSE_COPIES = 2
"""Copies of one layer's prefix on the dense path: one from the pool, one joined to new keys."""
_MOST_OF_MACHINE = 0.75
"""Share of a machine's memory above which weights and pool are likely to make it swap."""
_CACHE_SHARE = 0.05
"""Share of the GPU's recommended working set for freed buffers that MLX keeps for reuse."""


def left_beside(nbytes: int, available: int) -> int:
    """Return how many of `available` bytes the KV pool may count on beside another pool's `nbytes`.

    `nbytes / SHARE` is taken off, because the KV pool uses only `SHARE` of the bytes it is given.
    """
    return max(available - int(nbytes / SHARE), 0)


def pool_slots(
    wanted: int | None,
    context_length: int,
    layers: Sequence[LayerShape],
    dtype: mx.Dtype,
    available: int | None = None,
    kv_bits: int | None = None,
    ragged: bool = True,
) -> int:
    """Return the most slots that the KV pool may have.

    This is `wanted`. If `wanted` is None, it is as many slots as fit into memory beside the copies
    that steps make of the longest sequence, but at most `2 * context_length` or `ENOUGH`, whichever
    is more.

    Args:
        wanted: number of slots that the user asks for; None derives it from memory.
        context_length: most tokens of a sequence.
        available: bytes free after loading the weights; None asks the machine.
        kv_bits: see `KVPool`.
        ragged: False for the dense path; see `copied_slots`.

    Raises:
        MemoryLimitError: if `wanted` slots, or 1000 when that is None, do not fit.
    """
    available = available_bytes() if available is None else available
    each = KVPool.bytes_per_slot(layers, dtype, kv_bits)
    usable = int(available * SHARE)
    most = max(2 * context_length, ENOUGH)
    if each:
        copied = _copies(layers, ragged) * KVPool.bytes_per_slot(layers, dtype)
        beside = max(_beside_copies(available, each, copied, context_length), _FEWEST)
        fitting, most = usable // each, min(beside, most)
    else:  # recurrent layers keep no KV
        fitting = max(wanted or 0, most)
    slots = wanted or min(fitting, most)
    if slots > fitting or slots < min(_FEWEST, wanted or _FEWEST):
        remedy = "" if kv_bits else "; kv_bits=8 makes room for about twice as many"
        least = wanted or _FEWEST
        raise MemoryLimitError(
            f"a KV pool of {least} tokens does not fit: {least} x {each} bytes = "
            f"{least * each / _GIB:.2f} GiB, usable are {usable / _GIB:.2f} GiB "
            f"({SHARE:.0%} of {available / _GIB:.2f} GiB available): "
            f"at most {fitting} tokens (max_total_tokens){remedy}"
        )
    return slots


def copied_slots(
    slots: int,
    layers: Sequence[LayerShape],
    dtype: mx.Dtype,
    available: int | None = None,
    kv_bits: int | None = None,
    ragged: bool = True,
) -> int:
    """Return for how many slots a step may copy keys and values out of a pool of `slots`.

    A decode epoch copies all layers and pads the copies. The dense path copies one layer at a time.

    Args:
        available: bytes free after loading the weights, without the pool; None asks the machine.
        kv_bits: see `KVPool`; copies are in `dtype`.
        ragged: False for the dense path.
    """
    available = available_bytes() if available is None else available
    left = available - slots * KVPool.bytes_per_slot(layers, dtype, kv_bits)
    copied = _copies(layers, ragged) * KVPool.bytes_per_slot(layers, dtype)
    return max(int(left * _COPY_SHARE / copied), 1)


def _copies(layers: Sequence[LayerShape], ragged: bool) -> float:
    """Return how many copies of a sequence's KV in all layers a step keeps beside the pool."""
    return MOST_HELD if ragged else _DENSE_COPIES / len(layers)


def _beside_copies(available: int, each: int, copied: float, context_length: int) -> int:
    """Return the most slots of a pool that leaves room to copy its longest sequence.

    Args:
        each: bytes of one slot of the pool.
        copied: bytes of one token in all copies together.
    """
    room = available * (SHARE + _COPY_SHARE * (1 - SHARE))
    if room < context_length * (each + copied):  # the pool may hold less than a context
        return int(room / (each + copied))
    return int((room - context_length * copied) / each)


def warn_if_large(weights: int, pool: int, total: int) -> None:
    """Log a warning if weights and pool take most of the memory; all arguments are in bytes."""
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
    """Limit the freed buffers that MLX's allocator keeps on a GPU; by default it keeps all."""
    recommended = machine.recommended_bytes()
    if recommended:
        mx.set_cache_limit(max(_GIB, int(_CACHE_SHARE * recommended)))


class Garbage:
    """The freed buffers that MLX's allocator keeps; `clear` releases them if they exceed a limit.

    `limit` is an eighth of the pool, at most 512 MiB.

    Each prefill chunk reads a longer prefix than the previous one, so its buffers have new sizes
    and MLX cannot reuse the old ones. Without a limit, freed buffers grow with the square of the
    prompt's length. Below the limit they stay, because the next step reuses some.
    """

    def __init__(self, pool_bytes: int) -> None:
        self.limit = min(pool_bytes // 8, _MOST_GARBAGE)

    def clear(self) -> None:
        """Return all freed buffers to the system if they exceed the limit."""
        if mx.get_cache_memory() > self.limit:
            mx.clear_cache()
