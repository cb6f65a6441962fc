"""The size of the KV pool, decided before it is allocated."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.memory import available_bytes
from sgl_mlx.runtime.pool.kv import KVPool

_GIB = 2**30
_SHARE = 0.6
"""Share of the memory left after loading the weights; the rest is for activations and others.
Wiring 75 % and more of a Mac's memory is behind known kernel panics."""
_ENOUGH = 32768
"""Default number of slots, unless two contexts need more."""


def pool_slots(
    wanted: int | None,
    context_length: int,
    layers: Sequence[LayerShape],
    dtype: mx.Dtype,
    available: int | None = None,
    kv_bits: int | None = None,
) -> int:
    """Decide the slots of the pool: `wanted`, or as many as fit, up to two contexts or `_ENOUGH`.

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
    slots = wanted or min(fitting, max(2 * context_length, _ENOUGH))
    if slots > fitting or slots < min(1000, wanted or 1000):
        remedy = "" if kv_bits else "; kv_bits=8 makes room for about twice as many"
        raise MemoryLimitError(
            f"a KV pool of {wanted or 1000} tokens does not fit: {wanted or 1000} x {each} bytes = "
            f"{(wanted or 1000) * each / _GIB:.2f} GiB, usable are {usable / _GIB:.2f} GiB "
            f"({_SHARE:.0%} of {available / _GIB:.2f} GiB available): "
            f"at most {fitting} tokens (max_total_tokens){remedy}"
        )
    return slots
