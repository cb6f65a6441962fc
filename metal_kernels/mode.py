"""The kernels' mode, from the environment variable `SGL_MLX_KERNELS=off|auto|force`.

`off` uses no kernels. `auto` uses a kernel on Metal if it passed its self-test and is faster than
MLX. `force` uses kernels wherever they fit, and raises an error if one fails its self-test.
"""

from __future__ import annotations

import logging
import os
from typing import Literal, cast, get_args

import mlx.core as mx

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS, CutOvers
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.metal_kernels.tune import Sweep, Tuning
from sgl_mlx.metal_kernels.verdicts import VerdictFile

log = logging.getLogger(__name__)

VARIABLE = "SGL_MLX_KERNELS"

Mode = Literal["off", "auto", "force"]


def mode() -> Mode:
    """Read the kernels' mode from the environment; "auto" if the variable is not set.

    Raises:
        KernelError: the value is not off, auto or force.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in get_args(Mode):
        raise KernelError(f"{VARIABLE}={asked!r}: it must be {', '.join(get_args(Mode))}")
    return cast("Mode", asked)


def open_kernels(asked: Mode) -> TestedKernels | None:
    """Open the Metal kernels; None without Metal, or in mode "off".

    Raises:
        KernelError: the mode is "force", but there is no Metal.
    """
    if asked == "off":
        return None
    if mx.metal.is_available():
        return TestedKernels(Kernels(), VerdictFile(), force=asked == "force")
    if asked == "force":
        raise KernelError(f"{VARIABLE}=force, but MLX has no Metal here: it must be auto or off")
    return None


def cut_overs(case: Case, asked: Mode, tuning: Tuning | None = None) -> CutOvers:
    """Load the cut-overs for this machine and these heads; else measure and save them.

    Measuring takes some seconds. Call this function only for kernels that passed their self-test.
    If measuring fails, defaults are returned. In mode "force" nothing is measured, and
    `ALWAYS_OURS` is returned.

    Args:
        case: the specialisation whose heads, dims and dtype are measured.
        asked: the kernels' mode.
        tuning: the cache of measured cut-overs.
    """
    if asked == "force":
        return ALWAYS_OURS
    tuning = tuning or Tuning()
    kept = tuning.load(case)
    if kept is not None:
        return kept
    try:
        found = Sweep(case, Kernels()).run()
        tuning.save(case, found)
    except (RuntimeError, ValueError, OSError) as error:
        log.warning("kernels are not tuned, default cut-overs are used: %s", error)
        return CutOvers()
    return found
