"""The machine: its system, and the device that MLX computes on.

The package asks here and nowhere else, so that tests can put another machine in place of theirs.
"""

from __future__ import annotations

import sys
from typing import Any

from sgl_mlx.errors import BackendError

# mlx is imported when asked for: the system must be known before it is loaded


def system() -> str:
    """Name the system as Python does: "darwin" on a Mac, "linux"."""
    return sys.platform


def on_mac() -> bool:
    return system() == "darwin"


def on_gpu() -> bool:
    """True if MLX computes on a GPU by default."""
    import mlx.core as mx

    return bool(mx.default_device() == mx.gpu)


def has_metal() -> bool:
    """True if MLX was built for Metal and finds a GPU."""
    import mlx.core as mx

    return bool(mx.metal.is_available()) and bool(device_info())


def device_info() -> dict[str, Any]:
    """Return MLX's facts about its device; nothing if it has none.

    MLX has Metal on every Mac, but a virtual machine may have no GPU: then MLX raises an error.
    """
    import mlx.core as mx

    try:
        return dict(mx.device_info())
    except RuntimeError:
        return {}


def recommended_bytes() -> int | None:
    """Count the memory that Metal recommends for the GPU at most; None without a GPU."""
    found = device_info().get("max_recommended_working_set_size")
    return int(found) if found else None


def check_device() -> None:
    """Raise `BackendError` if MLX has no device to compute on."""
    if not device_info():
        raise BackendError(
            "MLX finds no GPU on this Mac; a virtual machine needs a paravirtual one (macOS 12 or "
            "newer as host and guest), and without any, run sgl-mlx on the Mac itself"
        )
