"""Facts about the machine: its operating system, and the device that MLX computes on.

Other modules get these facts only from here, so that tests can simulate another machine.
"""

from __future__ import annotations

import sys
from typing import Any

from sgl_mlx.errors import BackendError

# mlx is imported inside functions: `system()` must work before mlx is loaded


def system() -> str:
    """Return Python's name of the operating system: "darwin" on a Mac, "linux" on Linux."""
    return sys.platform


def on_mac() -> bool:
    return system() == "darwin"


def on_gpu() -> bool:
    """Return True if MLX computes on a GPU by default."""
    import mlx.core as mx

    return bool(mx.default_device() == mx.gpu)


def has_metal() -> bool:
    """Return True if MLX was built for Metal and finds a GPU."""
    import mlx.core as mx

    return bool(mx.metal.is_available()) and bool(device_info())


def device_info() -> dict[str, Any]:
    """Return MLX's facts about its device; an empty dictionary if MLX finds no device.

    A virtual machine with macOS may have no GPU.
    """
    import mlx.core as mx

    try:
        return dict(mx.device_info())
    except RuntimeError:
        return {}


def recommended_bytes() -> int | None:
    """Return the limit of GPU memory that Metal recommends, in bytes; None if MLX reports none."""
    found = device_info().get("max_recommended_working_set_size")
    return int(found) if found else None


def check_device() -> None:
    """Raise `BackendError` if MLX has no device to compute on."""
    if not device_info():
        raise BackendError(
            "MLX finds no GPU on this Mac; a virtual machine needs a paravirtual one (macOS 12 or "
            "newer as host and guest), and without any, run sgl-mlx on the Mac itself"
        )
