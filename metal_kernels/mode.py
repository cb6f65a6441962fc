"""Whether the kernels are used at all: `SGL_MLX_KERNELS=off|auto|force`.

`auto` uses them on Metal, each once it has been seen to be right. `force` uses them wherever they
fit, whatever is faster, and fails rather than fall back.
"""

from __future__ import annotations

import logging
import os
from typing import Literal, cast, get_args

import mlx.core as mx

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS, CutOvers
from sgl_mlx.metal_kernels.fallback import KernelsWithFallback
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tune import Sweep, Tuning

log = logging.getLogger(__name__)

VARIABLE = "SGL_MLX_KERNELS"

Mode = Literal["off", "auto", "force"]


def mode() -> Mode:
    """What the environment asks for.

    Raises:
        KernelError: for a word that is none of off, auto and force.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in get_args(Mode):
        raise KernelError(f"{VARIABLE}={asked!r}: it must be {', '.join(get_args(Mode))}")
    return cast("Mode", asked)


def open_kernels(asked: Mode) -> KernelsWithFallback | None:
    """The kernels on Metal; None where there are none to be had.

    Raises:
        KernelError: `force` without Metal.
    """
    if asked == "off":
        return None
    if mx.metal.is_available():
        return KernelsWithFallback(Kernels(), force=asked == "force")
    if asked == "force":
        raise KernelError(f"{VARIABLE}=force, but MLX has no Metal here: it must be auto or off")
    return None


def cut_overs(case: Case, asked: Mode, tuning: Tuning | None = None) -> CutOvers:
    """Those kept for this machine and these heads; found by a sweep of seconds the first time.

    A sweep that fails leaves the defaults: a kernel that cannot run is told by its first use.
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
        log.warning("kernels are not tuned, the defaults hold: %s", error)
        return CutOvers()
    return found
