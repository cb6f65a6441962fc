"""Checking that weights fit into memory before any of them is read."""

from __future__ import annotations

import mlx.core as mx
import psutil

from sgl_mlx import machine
from sgl_mlx.errors import MemoryLimitError

_GIB = 2**30
_HEADROOM = 0.9
"""Share of memory for weights; the rest is for activations, the KV pool and other programs."""


def total_bytes() -> int:
    """Count this machine's memory."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Count the memory that can be taken now without swapping.

    It is what is free or can be reclaimed at once (on a Mac, free and inactive pages); on a GPU
    no more than is left of its recommended working set.
    """
    free = int(psutil.virtual_memory().available)
    recommended = machine.recommended_bytes()
    return min(free, recommended - mx.get_active_memory()) if recommended else free


def check_fits(name: str, needed: int, available: int, how: str) -> None:
    """Raise `MemoryLimitError` with the arithmetic when `needed` bytes are too many.

    `how` tells where `needed` comes from, e.g. "135 M parameters as float32".
    """
    usable = int(available * _HEADROOM)
    if needed > usable:
        raise MemoryLimitError(
            f"{name} does not fit: {how} take {needed / _GIB:.2f} GiB, usable are "
            f"{usable / _GIB:.2f} GiB ({_HEADROOM:.0%} of {available / _GIB:.2f} GiB available); "
            "choose a smaller or a quantized model, or free memory"
        )
