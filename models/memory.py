"""Checking that weights fit into memory before any of them is read."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from sgl_mlx.errors import MemoryLimitError

_GIB = 2**30
_HEADROOM = 0.9
"""Share of memory for weights; the rest is for activations, the KV pool and other programs."""


def available_bytes() -> int:
    """Get the bytes available for weights: the GPU's recommended working set, else free memory."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended:
        return int(recommended) - mx.get_active_memory()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
