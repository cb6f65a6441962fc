"""Small calls that together use every kernel and every branch of it, each checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from sgl_mlx.metal_kernels.build import Kernels
from tests.metal_kernels.cases import Case, assert_close, decode_call, extend_call

BASE: dict[str, Any] = {"dim": 80, "dtype": mx.float32, "group": 3, "kv_heads": 2}
LATENT = {"dim": 576, "value_dim": 512}
"""Widths of MLA: the widest, in four slices."""
IN_KEYS = LATENT | {"values_in_keys": True}
"""MLA as its pool has it."""


def _extend(**case: Any) -> Callable[[Kernels], None]:
    call = extend_call(Case(**{**BASE, **case}), [(5, 3), (70, 40), (0, 12)])
    return lambda kernels: _compare(call, kernels)


def _decode(spans: list[tuple[int, int, int, int]], **case: Any) -> Callable[[Kernels], None]:
    call = decode_call(Case(**{**BASE, **case}), [3, 70, 0, 33], 5, spans, tokens=2, width=7)
    return lambda kernels: _compare(call, kernels)


def _compare(call: Any, kernels: Kernels) -> None:
    assert_close(call.run(kernels), call.reference(), mx.float32)


SPANS = [(1, 4, 0, 50), (1, 3, 50, 40)]
WORK: dict[str, Callable[[Kernels], None]] = {
    "extend": _extend(),
    "extend window": _extend(window=21),
    "extend capped": _extend(softcap=20.0, loud=True, sinks=True),
    "extend int8": _extend(quantized=True),
    "extend wide": _extend(dim=256),
    "extend latent": _extend(**LATENT),
    "extend in keys": _extend(**IN_KEYS),
    "decode": _decode([]),
    "decode window": _decode([], window=21, sinks=True),
    "decode narrow": _decode([], dim=64, quantized=True),
    "decode latent": _decode(SPANS, **LATENT),
    "decode in keys": _decode(SPANS, **IN_KEYS),
    "decode shared": _decode(SPANS),
    "decode shared window": _decode(SPANS, window=45),
}
