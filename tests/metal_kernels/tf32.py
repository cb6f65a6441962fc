"""A device that multiplies float32 matrices in TF32, as MLX does on GPUs from M5 on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

PRODUCTS = ("matmul", "einsum", "addmm", "tensordot", "inner")


def rounded(x: Any) -> Any:
    """Round float32 to TF32: 10 bits of mantissa, to nearest even."""
    if not isinstance(x, mx.array) or x.dtype != mx.float32:
        return x
    bits = x.view(mx.uint32)
    even = (bits >> 13) & 1
    return ((bits + 0xFFF + even) & 0xFFFFE000).view(mx.float32)


def multiply_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round the factors of every matrix product of MLX, however it is written."""

    def through(product: Callable[..., mx.array]) -> Callable[..., mx.array]:
        return lambda *factors, **options: product(*map(rounded, factors), **options)

    for name in PRODUCTS:
        monkeypatch.setattr(mx, name, through(getattr(mx, name)))
    monkeypatch.setattr(mx.array, "__matmul__", through(mx.array.__matmul__))
