"""Small calls that together use every kernel and every branch of it, each checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import POOL, Kernels
from sgl_mlx.metal_kernels.plan import MIN_ELEMENTS, int_table
from sgl_mlx.metal_kernels.pool import PoolLayer
from tests.metal_kernels.cases import Case, assert_close, decode_call, extend_call

BASE = {"dim": 80, "dtype": mx.float32, "group": 3, "kv_heads": 2}


def _extend(**case: Any) -> Callable[[Kernels], None]:
    call = extend_call(Case(**BASE, **case), [(5, 3), (70, 40), (0, 12)])
    return lambda kernels: _compare(call, kernels)


def _decode(spans: list[tuple[int, int, int, int]], **case: Any) -> Callable[[Kernels], None]:
    call = decode_call(Case(**BASE, **case), [3, 70, 0, 33], 5, spans, tokens=2, width=7)
    return lambda kernels: _compare(call, kernels)


def _compare(call: Any, kernels: Kernels) -> None:
    assert_close(call.run(kernels), call.reference(), mx.float32)


def _flush(kernels: Kernels) -> None:
    keys, values = (mx.random.normal((5, 2, 80), key=mx.random.key(i)) for i in range(2))
    keys = mx.concatenate([keys[..., :1] - 9, keys[..., 1:]], axis=-1)  # the widest is negative
    pool = PoolLayer(*(mx.zeros((9, 2, 80), mx.int8), mx.zeros((9, 2, 80), mx.int8)),
                     *(mx.zeros((9, 2), mx.float16), mx.zeros((9, 2), mx.float16)))  # fmt: skip
    slots, previous = int_table([7, 2, 8, 3, 1]), mx.zeros(MIN_ELEMENTS, mx.int32)
    wanted, _ = reference.flush_pool(pool, keys, values, slots, previous)
    mx.eval(*(x for x in wanted if x is not None))
    ops.flush_pool(pool, keys, values, slots, previous, kernels)
    for name, got, want in zip(POOL, pool, wanted, strict=True):
        assert np.array_equal(np.array(got), np.array(want)), f"{name} differs"


SPANS = [(1, 4, 0, 50), (1, 3, 50, 40)]
WORK: dict[str, Callable[[Kernels], None]] = {
    "extend": _extend(),
    "extend window": _extend(window=21),
    "extend capped": _extend(softcap=20.0, loud=True, sinks=True),
    "extend int8": _extend(quantized=True),
    "decode": _decode([]),
    "decode window": _decode([], window=21, sinks=True),
    "decode shared": _decode(SPANS),
    "decode shared window": _decode(SPANS, window=45),
    "flush": _flush,
}
