"""Opening of the CPU kernels, in the mode of `SGL_MLX_KERNELS`, which also sets Metal's mode."""

from __future__ import annotations

from types import ModuleType

from sgl_mlx.cpu_kernels import build
from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.mode import VARIABLE, mode


def open_cpu_kernels() -> ModuleType | None:
    """Open the CPU kernels; None in mode "off", or if they are not compiled or do not load.

    Raises:
        KernelError: the mode is "force", but the kernels cannot be used, or the mode is unknown.
    """
    asked = mode()
    if asked == "off":
        return None
    kernels = build.load()
    if kernels is None and asked == "force":
        raise KernelError(f"{VARIABLE}=force, but {build.why_not()}")
    return kernels
