"""Results of kernels in the emulator: positions, types, simdgroup functions, matrices."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_kernels.emulator import Emulator, needs_compiler
from tests.metal_kernels.one_kernel import run

pytestmark = needs_compiler
LANES = np.arange(32)
HERE = "uint i = thread_position_in_grid.x;"


def test_a_kernel_object_is_called_as_mlx_calls_it() -> None:
    kernel = Emulator().metal_kernel(
        name="axpy",
        input_names=["x", "y", "n"],
        output_names=["out", "twice"],
        source=f"{HERE} out[i] = T(x[i] * A) + y[i] + T(n); twice[i] = 2 * out[i];",
    )
    out, twice = kernel(
        inputs=[mx.ones((2, 8)), mx.arange(16, dtype=mx.float32), 3],
        template=[("T", mx.float32), ("A", 4)],
        output_shapes=[(2, 8), (16,)],
        output_dtypes=[mx.float32, mx.float32],
        grid=(16, 1, 1),
        threadgroup=(8, 1, 1),
    )
    assert out.reshape(-1).tolist() == [7 + i for i in range(16)]
    assert twice.tolist() == [14 + 2 * i for i in range(16)]


def test_small_inputs_and_shapes_are_bound_as_mlx_declares_them() -> None:
    out = run(
        f"{HERE} out[i] = few[2] + one + x_shape[1] * 10 + x_strides[0] * 100 + x_ndim * 1000;",
        {"x": mx.zeros((4, 8)), "few": mx.array([1.0, 2.0, 3.0]), "one": mx.array(0.5)},
    )
    assert out.tolist() == [2000 + 800 + 80 + 3.5] * 32


def test_a_grid_that_the_threadgroup_does_not_divide_has_a_short_last_group() -> None:
    out = run(f"{HERE} out[i] = threads_per_threadgroup.x;", shape=(40,), grid=40)
    assert out.tolist() == [32] * 32 + [8] * 8


def test_init_value_fills_what_no_thread_writes() -> None:
    out = run("if (thread_position_in_grid.x == 1) out[1] = x[1];", init_value=5)
    assert out.tolist()[:3] == [5, 1, 5]


def test_outputs_that_no_thread_writes_are_nan() -> None:
    out = run("if (thread_position_in_grid.x == 1) out[1] = x[1];")
    assert math.isnan(out[0].item())
    assert out[1].item() == 1


def test_half_is_rounded_after_every_operation() -> None:
    out = run(f"{HERE} half a = half(2048.0); half b = half(1.0); out[i] = float((a + b) + b);")
    assert out[0].item() == 2048.0  # 2050 if the sum were kept in float


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.int8, mx.int32])
def test_types_go_in_and_out_unchanged(dtype: mx.Dtype) -> None:
    x = mx.arange(-16, 16).astype(dtype)
    assert mx.array_equal(run(f"{HERE} out[i] = x[i];", {"x": x}, dtype=dtype), x)


def test_bfloat_rounds_as_mlx_does() -> None:
    x = mx.random.normal((32,))
    out = run(f"{HERE} out[i] = bfloat(x[i]);", {"x": x}, dtype=mx.bfloat16)
    assert mx.array_equal(out, x.astype(mx.bfloat16))


def test_literals_without_a_suffix_are_floats() -> None:
    out = run(f"{HERE} out[i] = sizeof(1.5) * 100 + sizeof(2.5h) * 10 + sizeof(1e-3);")
    assert out[0].item() == 424


@pytest.mark.parametrize(
    ("function", "right"),
    [
        ("simd_sum(v)", np.full(32, LANES.sum())),
        ("simd_max(v)", np.full(32, 31)),
        ("simd_min(v + 1)", np.full(32, 1)),
        ("simd_shuffle(v, 31 - i)", 31 - LANES),
        ("simd_shuffle_xor(v, 8)", LANES ^ 8),
        ("simd_shuffle_down(v, 2)", np.minimum(LANES + 2, np.where(LANES < 30, 99, LANES))),
        ("simd_shuffle_up(v, 2)", np.where(LANES < 2, LANES, LANES - 2)),
        ("simd_broadcast(v, 5)", np.full(32, 5)),
        ("simd_broadcast_first(v + 3)", np.full(32, 3)),
        ("simd_prefix_inclusive_sum(v)", LANES.cumsum()),
        ("simd_prefix_exclusive_sum(v)", LANES.cumsum() - LANES),
        ("float(ulong(simd_ballot(i < 4)))", np.full(32, 15)),
        ("simd_any(i == 3) + 2 * simd_all(i == 3) + 4 * simd_all(i < 32)", np.full(32, 5)),
        ("quad_shuffle_xor(v, 1)", LANES ^ 1),
    ],
)
def test_simdgroup_functions(function: str, right: np.ndarray) -> None:
    out = run(f"uint i = thread_index_in_simdgroup; float v = float(x[i]); out[i] = {function};")
    np.testing.assert_array_equal(np.array(out), right.astype(np.float32))


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("exp2(v)", np.exp2),
        ("fast::exp2(v)", np.exp2),
        ("precise::tanh(v)", np.tanh),
        ("log(v + 1)", np.log1p),
        ("rsqrt(v + 1)", lambda v: 1 / np.sqrt(v + 1)),
        ("rint(v * 2.5)", lambda v: np.rint(v * 2.5)),
        ("clamp(v, -1.0, 1.0)", lambda v: np.clip(v, -1, 1)),
        ("fma(v, v, 1.0)", lambda v: v * v + 1),
        ("select(v, 0.0, v > 1)", lambda v: np.where(v > 1, 0, v)),
        ("dot(float4(v), float4(1, 2, 3, 4))", lambda v: 10 * v),
        ("float3(v, float2(1, 2)).z + v", lambda v: 2 + v),
        ("as_type<float>(as_type<uint>(v))", lambda v: v),
        ("float(max(int(v), 2))", lambda v: np.maximum(np.trunc(v), 2)),
    ],
)
def test_metal_functions(expression: str, right: np.ufunc) -> None:
    x = mx.arange(32, dtype=mx.float32) / 8
    out = run(f"{HERE} float v = x[i]; out[i] = {expression};", {"x": x})
    np.testing.assert_allclose(np.array(out), right(np.array(x)), rtol=2e-6)


def test_exp2_of_minus_infinity_is_zero() -> None:
    assert run(f"{HERE} out[i] = exp2(-INFINITY) + fast::exp2(-INFINITY);").tolist() == [0] * 32


def test_fast_exp2_is_as_far_off_as_apple_allows_and_no_further() -> None:
    x = mx.array(np.random.default_rng(0).uniform(-40, 20, 4096), mx.float32)
    out = run(f"{HERE} out[i] = fast::exp2(x[i]);", {"x": x}, shape=(4096,), grid=4096)
    right = np.exp2(np.array(x, np.float64))
    units = np.abs(np.array(out, np.float64) - right) / np.spacing(right.astype(np.float32))
    allowed = 3 + np.floor(np.abs(2 * np.array(x)))
    assert np.all(units <= allowed + 1)  # and the rounding of what it starts from
    assert np.mean(units > 0.9 * allowed - 1) > 0.5
    assert run(f"{HERE} out[i] = fast::exp2(-130.0 - x[i]);").tolist() == [0] * 32


MULTIPLY = """
  simdgroup_matrix<T, 8, 8> a, b;
  simdgroup_matrix<float, 8, 8> c(1.0);
  simdgroup_load(a, left, 8);
  simdgroup_load(b, right, 8, ulong2(0), TRANSPOSED);
  simdgroup_multiply_accumulate(c, a, b, c);
  simdgroup_store(c, out, 8);
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_matrices_multiply_on_top_of_the_unit_matrix(dtype: mx.Dtype, transposed: bool) -> None:
    left, right = (mx.random.randint(-8, 8, (8, 8)).astype(dtype) for _ in range(2))
    template = [("T", dtype), ("TRANSPOSED", transposed)]
    inputs = {"left": left, "right": right}
    out = run(MULTIPLY, inputs, shape=(8, 8), template=template)
    expected = left.astype(mx.float32) @ (right.T if transposed else right).astype(mx.float32)
    assert mx.array_equal(out, expected + mx.eye(8))


def test_thread_elements_follow_apples_lane_map() -> None:
    source = """
      simdgroup_matrix<float, 8, 8> m;
      simdgroup_load(m, x, 8);
      uint i = thread_index_in_simdgroup;
      float2 e = m.thread_elements();
      out[2 * i] = e[0];
      out[2 * i + 1] = e[1];
    """
    out = run(source, {"x": mx.arange(64, dtype=mx.float32)}, shape=(64,))
    lanes = np.array(out).reshape(32, 2)
    # from MLX's steel kernels: get_coord of BaseMMAFrag
    rows = (LANES // 4 & 4) + LANES // 2 % 4
    columns = (LANES // 4 & 2) * 2 + LANES % 2 * 2
    np.testing.assert_array_equal(lanes[:, 0], rows * 8 + columns)
    np.testing.assert_array_equal(lanes[:, 1], rows * 8 + columns + 1)


def test_atomics_add_up_over_threadgroups() -> None:
    kernel = Emulator().metal_kernel(
        "total",
        ["x"],
        ["out"],
        "atomic_fetch_add_explicit(&out[0], x[thread_position_in_grid.x], memory_order_relaxed);",
        atomic_outputs=True,
    )
    (out,) = kernel(
        inputs=[mx.arange(100, dtype=mx.float32)],
        output_shapes=[(1,)],
        output_dtypes=[mx.float32],
        grid=(100, 1, 1),
        threadgroup=(32, 1, 1),
        init_value=0,
    )
    assert out.item() == 4950


def test_threads_exchange_through_threadgroup_memory() -> None:
    source = """
      threadgroup float a[64], b[2][32];
      uint i = thread_position_in_threadgroup.x;
      a[i] = x[i % 32];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      b[i / 32][i % 32] = a[63 - i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (i < 32) out[i] = b[1][i] + b[0][i];
    """
    assert run(source, threads=64).tolist() == [2.0 * (31 - i) for i in range(32)]


def test_inputs_named_writable_change_in_place() -> None:
    pool = mx.zeros((32,))
    emulator = Emulator(writable=frozenset({"pool"}))
    source = f"{HERE} ((device float*)pool)[i] = x[i]; out[i] = 0;"
    run(source, {"pool": pool, "x": mx.arange(32, dtype=mx.float32)}, emulator=emulator)
    assert pool.tolist() == list(range(32))


def test_counters_are_exact() -> None:
    emulator = Emulator()
    inputs = {"left": mx.ones((8, 8), mx.float16), "right": mx.ones((8, 8), mx.float16)}
    template = [("T", mx.float16), ("TRANSPOSED", False)]
    run(MULTIPLY, inputs, shape=(8, 8), template=template, emulator=emulator)
    counters = emulator.launches[-1].counters
    assert (counters.mmas, counters.simd_operations, counters.barriers) == (1, 4, 0)
    assert counters.bytes_read == {"left": 128, "right": 128, "out": 0}
    assert counters.bytes_written == {"left": 0, "right": 0, "out": 256}
