"""Products with packed weights against the same in double precision."""

from __future__ import annotations

from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.cpu_kernels.packing import fits, pack, unpack

TOLERANCE = 1e-5
"""Error relative to the root of the squared terms: float32's own; two parts of x lose more."""


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 70) | st.integers(500, 530),
    n=st.integers(1, 100),
    groups=st.integers(1, 9),
    group=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
)
def test_it_is_the_product_with_the_dequantized_weights(
    rows: int, n: int, groups: int, group: int, bits: int, seed: int, kernels: ModuleType
) -> None:
    keys = mx.random.split(mx.random.key(seed))
    weights = mx.random.normal((n, groups * group), key=keys[0])
    quantized = mx.quantize(weights, group_size=group, bits=bits)
    x = mx.random.normal((rows, groups * group), key=keys[1])
    got = np.array(kernels.linear(x, *pack(*quantized, bits, group)))
    wide = np.array(mx.dequantize(*quantized, group_size=group, bits=bits), np.float64)
    want = np.array(x, np.float64) @ wide.T
    size = np.sqrt(np.square(np.array(x, np.float64)) @ np.square(wide.T))
    assert np.abs((got - want) / size).max() <= TOLERANCE


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    n=st.integers(1, 40),
    groups=st.integers(1, 5),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
)
def test_a_row_has_the_same_product_alone_to_the_last_bit(
    rows: int, n: int, groups: int, bits: int, seed: int, kernels: ModuleType
) -> None:
    if "amx" in kernels.instruction_sets().lower():
        rows = min(rows, 4)  # more go through the tiles, which sum in another order
    keys = mx.random.split(mx.random.key(seed))
    quantized = mx.quantize(mx.random.normal((n, groups * 32), key=keys[0]), 32, bits)
    packed = pack(*quantized, bits, 32)
    x = mx.random.normal((rows, groups * 32), key=keys[1])
    together = kernels.linear(x, *packed)
    alone = mx.concatenate([kernels.linear(x[i : i + 1], *packed) for i in range(rows)])
    assert mx.array_equal(together, alone)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 100),
    groups=st.integers(1, 5),
    group=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
)
def test_what_was_packed_comes_back(n: int, groups: int, group: int, bits: int) -> None:
    weights = mx.random.normal((n, groups * group), key=mx.random.key(n))
    quantized = mx.quantize(weights, group_size=group, bits=bits)
    back = np.array(unpack(pack(*quantized, bits, group)))
    want = np.array(mx.dequantize(*quantized, group_size=group, bits=bits))
    np.testing.assert_allclose(back, want, atol=1e-6)


def test_leading_axes_and_strides_of_x_are_kept(kernels: ModuleType) -> None:
    packed = pack(*mx.quantize(mx.random.normal((24, 64)), group_size=32, bits=4), 4, 32)
    x = mx.random.normal((64, 5, 3)).transpose(2, 1, 0)
    flat = kernels.linear(mx.contiguous(x).reshape(15, 64), *packed)
    assert kernels.linear(x, *packed).shape == (3, 5, 24)
    assert mx.array_equal(kernels.linear(x, *packed).reshape(15, 24), flat)


def test_no_rows_are_no_work(kernels: ModuleType) -> None:
    packed = pack(*mx.quantize(mx.random.normal((24, 64)), group_size=32, bits=4), 4, 32)
    assert kernels.linear(mx.zeros((0, 64)), *packed).shape == (0, 24)


def test_what_cannot_be_packed_is_refused() -> None:
    assert not fits(64, 3, 32)
    assert not fits(64, 4, 16)
    three = mx.quantize(mx.random.normal((16, 64)), group_size=32, bits=3)
    with pytest.raises(ValueError, match="3 bits"):
        pack(*three, 3, 32)


def test_weights_of_another_shape_are_refused(kernels: ModuleType) -> None:
    packed = pack(*mx.quantize(mx.random.normal((24, 64)), group_size=32, bits=4), 4, 32)
    with pytest.raises(ValueError, match="another width"):
        kernels.linear(mx.zeros((2, 128)), *packed)
    with pytest.raises(ValueError, match="x has a wrong dtype"):
        kernels.linear(mx.zeros((2, 64), mx.float16), *packed)
