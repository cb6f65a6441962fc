"""Products with the weights of chosen experts against MLX's gathered product."""

from __future__ import annotations

from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.switch_layers import SwitchLinear

from sgl_mlx.models.packed_layers import PackedMultiLinear, PackedSwitchLinear

TOLERANCE = 2e-5
"""Error relative to the root of the sum of squared terms, about: float32's own."""


def assert_close(got: mx.array, want: mx.array, k: int) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(np.array(got), np.array(want), atol=TOLERANCE * k**0.5)


def experts(count: int, n: int, k: int, bits: int, bias: bool, seed: int) -> SwitchLinear:
    layer = SwitchLinear(k, n, count, bias=bias)
    layer.weight = mx.random.normal((count, n, k), key=mx.random.key(seed))
    if bias:
        layer.bias = mx.random.normal((count, n), key=mx.random.key(seed + 1))
    return layer.to_quantized(32, bits)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9),
    n=st.integers(1, 50),
    groups=st.integers(1, 4),
    bits=st.sampled_from([4, 8]),
    bias=st.booleans(),
    tokens=st.integers(1, 40),
    chosen=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_each_row_goes_through_the_experts_chosen_for_it(
    count: int,
    n: int,
    groups: int,
    bits: int,
    bias: bool,
    tokens: int,
    chosen: int,
    seed: int,
    kernels: ModuleType,
) -> None:
    k = 32 * groups
    layer = experts(count, n, k, bits, bias, seed)
    packed = PackedSwitchLinear(layer, kernels)
    keys = mx.random.split(mx.random.key(seed))
    indices = mx.random.randint(0, count, (1, tokens, chosen), key=keys[0]).astype(mx.uint32)
    for each in (1, chosen):  # one row of x for all experts of a token, or one for each
        x = mx.random.normal((1, tokens, each, 1, k), key=keys[1])
        got = packed(x, indices)
        assert_close(got, layer(x, indices), k)
        alone = [packed(x[:, i : i + 1], indices[:, i : i + 1]) for i in range(tokens)]
        assert mx.array_equal(mx.concatenate(alone, axis=1), got)


@pytest.mark.parametrize("shape", [(7, 1), (5, 7, 1), (5, 7, 3)], ids=str)
def test_leading_axes_are_broadcast(shape: tuple[int, ...], kernels: ModuleType) -> None:
    layer = experts(4, 24, 64, 4, True, seed=2)
    indices = mx.random.randint(0, 4, (5, 7))
    x = mx.random.normal((*shape, 64))
    assert_close(PackedSwitchLinear(layer, kernels)(x, indices), layer(x, indices), 64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n", [32, 40])
def test_each_head_has_its_own_matrix(bits: int, n: int, kernels: ModuleType) -> None:
    layer = MultiLinear(64, n, 3).to_quantized(32, bits)
    packed = PackedMultiLinear(layer, kernels)
    for heads in (1, 3):
        x = mx.random.normal((2, heads, 5, 64))
        assert_close(packed(x), layer(x), 64)
    weights = mx.dequantize(layer.weight, layer.scales, layer.biases, 32, bits)
    back = mx.random.normal((2, 1, 5, n))
    assert_close(packed(back, transpose=False), back @ weights, n)


def test_rows_without_experts_are_refused(kernels: ModuleType) -> None:
    packed = PackedSwitchLinear(experts(2, 16, 32, 4, False, seed=0), kernels)
    how = packed.q, packed.scales, packed.biases, 4, 32, 16, 2
    with pytest.raises(ValueError, match="multiple of the rows of x"):
        kernels.linear_of_experts(mx.zeros((2, 32)), mx.zeros((3,), mx.int32), *how)
    with pytest.raises(ValueError, match="another width"):
        kernels.linear_of_experts(mx.zeros((2, 64)), mx.zeros((2,), mx.int32), *how)
