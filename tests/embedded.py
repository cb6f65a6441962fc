"""The embedded model as tests open it that compare answers exactly."""

from __future__ import annotations

from typing import Any

from sgl_mlx import machine
from sgl_mlx.runtime.engine import Engine


def open_embedded(**options: Any) -> Engine:
    """Open SmolLM2 in float32 on every machine.

    By default a GPU computes in half precision: there, batches of other sizes round differently,
    and a greedy answer may differ where two tokens are almost equally likely.
    """
    return Engine("smollm2", dtype="float32" if machine.on_gpu() else None, **options)
