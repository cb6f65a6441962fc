"""Whether the CPU kernels are used: as `SGL_MLX_KERNELS` says, like those for Metal."""

from __future__ import annotations

from types import ModuleType

from sgl_mlx.cpu_kernels import build
from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.mode import VARIABLE, mode


def open_cpu_kernels() -> ModuleType | None:
    """The kernels; None when they are switched off or there are none.

    Raises:
        KernelError: `force`, and they cannot be used; the message says why.
    """
    asked = mode()
    if asked == "off":
        return None
    kernels = build.load()
    if kernels is None and asked == "force":
        raise KernelError(f"{VARIABLE}=force, but {build.why_not()}")
    return kernels
