"""The pool flush in the emulator: writes into the pool's own memory."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import POOL, Kernels
from sgl_mlx.metal_kernels.plan import int_table
from sgl_mlx.metal_kernels.pool import PoolLayer, quantize
from tests.metal_kernels.cases import NAMES, Case
from tests.metal_kernels.emulator import Emulator


@pytest.mark.parametrize("quantized", [False, True], ids=["whole", "int8"])
@pytest.mark.parametrize("dtype", NAMES, ids=list(NAMES.values()))
@pytest.mark.parametrize("dim", [64, 80, 256])
def test_the_slots_named_are_written_and_no_others(
    dim: int, dtype: mx.Dtype, quantized: bool, emulator: Emulator
) -> None:
    kernels = Kernels(Emulator(emulator.schedules, frozenset(POOL)).metal_kernel)
    random = np.random.default_rng(0)
    case = Case(dim=dim, dtype=dtype, kv_heads=2)
    keys, values, new_keys, new_values = (case.keys(random, n) for n in (6, 6, 3, 3))
    new_keys[1] = 0
    pool = PoolLayer(keys, values)
    if quantized:
        (k, k_scales), (v, v_scales) = quantize(keys), quantize(values)
        pool = PoolLayer(k, v, k_scales, v_scales)
    call = (new_keys, new_values, int_table([5, 1, 2]), int_table([7] * 8))
    want, token = reference.flush_pool(pool, *call)
    mx.eval(pool, want, token)  # type: ignore[no-untyped-call]
    done = ops.flush_pool(pool, *call, kernels=kernels)
    assert done.tolist() == token.tolist() == [10] * 8
    for name, got, wanted in zip(POOL, pool, want, strict=True):
        if wanted is not None:
            assert mx.array_equal(got, wanted).item(), name
