"""Memory of this machine, and the check that a model's weights fit before they are read."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import mlx.core as mx
import psutil

from sgl_mlx import machine
from sgl_mlx.errors import MemoryLimitError

_GIB = 2**30
_HEADROOM = 0.9
"""Share of the available memory that weights may take; activations and KV take the rest."""


def total_bytes() -> int:
    """Return the size of this machine's memory, in bytes."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Return how many bytes can be allocated now without swapping.

    Counts memory that is free or can be reclaimed at once (on a Mac, free and inactive pages). On
    a GPU the result is at most what is left of its recommended working set.
    """
    free = int(psutil.virtual_memory().available)
    recommended = machine.recommended_bytes()
    return min(free, recommended - mx.get_active_memory()) if recommended else free


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, from MLX's cache and from glibc's heaps."""
    mx.clear_cache()
    with suppress(OSError, AttributeError):  # other C libraries keep less
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_fits(name: str, needed: int, available: int, how: str) -> None:
    """Raise `MemoryLimitError` if `needed` is more than 90 % of `available`, both in bytes.

    Args:
        name: the model, for the message.
        how: where `needed` comes from, for the message, such as "135 M parameters as float32".
    """
    usable = int(available * _HEADROOM)
    if needed > usable:
        raise MemoryLimitError(
            f"{name} does not fit: {how} take {needed / _GIB:.2f} GiB, usable are "
            f"{usable / _GIB:.2f} GiB ({_HEADROOM:.0%} of {available / _GIB:.2f} GiB available); "
            "choose a smaller or a quantized model, or free memory"
        )
