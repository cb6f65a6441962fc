"""A small kernel run by the emulator in one call, for the tests of the emulator itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from tests.metal_kernels.emulator import SCHEDULES, Emulator


def run(
    source: str,
    inputs: Mapping[str, Any] | None = None,
    *,
    shape: Sequence[int] = (32,),
    dtype: mx.Dtype = mx.float32,
    threads: int = 32,
    grid: int | None = None,
    emulator: Emulator | None = None,
    header: str = "",
    **call: Any,
) -> mx.array:
    """The only output, `out`, of a kernel with this body, under all schedules."""
    inputs = inputs or {"x": mx.arange(32, dtype=mx.float32)}
    kernel = (emulator or Emulator(schedules=SCHEDULES)).metal_kernel(
        "small", list(inputs), ["out"], source, header
    )
    (out,) = kernel(
        inputs=list(inputs.values()),
        output_shapes=[shape],
        output_dtypes=[dtype],
        grid=(grid or threads, 1, 1),
        threadgroup=(threads, 1, 1),
        **call,
    )
    return out
