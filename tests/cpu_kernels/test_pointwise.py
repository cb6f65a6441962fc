"""Norms, rotary positions and gates against MLX's own."""

from __future__ import annotations

import threading
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def close(got: mx.array, want: mx.array, tolerance: float) -> bool:
    return bool(np.allclose(np.array(got), np.array(want), rtol=tolerance, atol=tolerance))


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 300), width=st.integers(1, 700), seed=st.integers(0, 99))
def test_norms(rows: int, width: int, seed: int, kernels: ModuleType) -> None:
    a, b = mx.random.split(mx.random.key(seed))
    x, weight = mx.random.normal((rows, width), key=a) * 3, mx.random.normal((width,), key=b)
    assert close(kernels.rms_norm(x, weight, 1e-5), mx.fast.rms_norm(x, weight, 1e-5), 2e-5)
    assert close(kernels.rms_norm(x, None, 1e-5), mx.fast.rms_norm(x, None, 1e-5), 2e-5)


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40_000), loudness=st.sampled_from([1.0, 30.0, 500.0]))
def test_gates(size: int, loudness: float, kernels: ModuleType) -> None:
    gate, x = mx.random.normal((2, size), key=mx.random.key(size)) * loudness
    want = nn.silu(gate) * x
    assert close(kernels.swiglu(gate, x), want, 1e-5 * loudness)


@pytest.mark.parametrize("size", [1 << 8, 1 << 15], ids=["few", "many"])
def test_gates_are_those_of_the_true_exp(size: int, kernels: ModuleType) -> None:
    gate = np.linspace(-100, 100, size, dtype=np.float32)
    x = np.linspace(2, 3, size, dtype=np.float32)
    found = np.array(kernels.swiglu(mx.array(gate), mx.array(x)))
    wide = gate.astype(np.float64)
    np.testing.assert_allclose(found, wide / (1 + np.exp(-wide)) * x, rtol=4e-6, atol=1e-30)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 40),
    heads=st.integers(1, 5),
    length=st.integers(1, 9),
    dims=st.sampled_from([8, 16, 32]),
    traditional=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    frequencies=st.booleans(),
    transposed=st.booleans(),
)
def test_rotary_positions(
    batch: int,
    heads: int,
    length: int,
    dims: int,
    traditional: bool,
    scale: float,
    frequencies: bool,
    transposed: bool,
    kernels: ModuleType,
) -> None:
    key = mx.random.key(batch)
    x = mx.random.normal((batch, length, heads, 32), key=key).swapaxes(1, 2)
    x = x if transposed else mx.contiguous(x)
    offset = mx.random.randint(0, 2000, (batch,), key=key)
    freqs = 3.0 ** mx.arange(dims // 2) if frequencies else None
    base = 10000.0
    listed = [] if freqs is None else freqs.tolist()
    got = kernels.rope(x, offset, dims, traditional, base, scale, listed)
    want = mx.fast.rope(
        x,
        dims,
        traditional=traditional,
        base=None if frequencies else base,
        scale=scale,
        offset=offset,
        freqs=freqs,
    )
    # an angle of 2,000 radians in float32 is itself only known to 1e-4
    assert close(got, want, 2e-3)
    early = kernels.rope(x, mx.zeros((batch,), mx.int32), dims, traditional, base, scale, listed)
    want = mx.fast.rope(
        x,
        dims,
        traditional=traditional,
        base=None if frequencies else base,
        scale=scale,
        offset=0,
        freqs=freqs,
    )
    assert close(early, want, 1e-5)


def test_one_offset_stands_for_the_whole_batch(kernels: ModuleType) -> None:
    x = mx.random.normal((3, 2, 4, 16))
    one = kernels.rope(x, mx.array([7]), 16, False, 1e4, 1.0, [])
    each = kernels.rope(x, mx.array([7, 7, 7]), 16, False, 1e4, 1.0, [])
    assert mx.array_equal(one, each)


def test_shapes_that_do_not_match_are_refused(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        kernels.swiglu(mx.zeros((3,)), mx.zeros((4,)))
    with pytest.raises(ValueError, match=r"\(B, H, L, D\)"):
        kernels.rope(mx.zeros((3, 4)), mx.array([0]), 4, False, 1e4, 1.0, [])


def test_threads_that_call_at_once_do_not_disturb_each_other(kernels: ModuleType) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            gate = mx.random.normal((200, 401), key=mx.random.key(seed))
            want = np.array(nn.silu(gate) * gate)
            for _ in range(60):
                if not np.allclose(np.array(kernels.swiglu(gate, gate)), want, atol=1e-5):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
