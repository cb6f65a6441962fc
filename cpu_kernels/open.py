"""Opening the CPU kernels as `SGL_MLX_KERNELS` says, which also governs those for Metal."""

from __future__ import annotations

from types import ModuleType

from sgl_mlx.cpu_kernels import build
from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.mode import VARIABLE, mode


def open_cpu_kernels() -> ModuleType | None:
    """Open the kernels; None if they are switched off or not compiled.

    Raises:
        KernelError: with `force`, if they cannot be used; the message says why.
    """
    asked = mode()
    if asked == "off":
        return None
    kernels = build.load()
    if kernels is None and asked == "force":
        raise KernelError(f"{VARIABLE}=force, but {build.why_not()}")
    return kernels
