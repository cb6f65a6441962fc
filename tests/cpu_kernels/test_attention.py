"""Attention of the CPU kernels against the reference of those for Metal, on the same grid."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.cpu_kernels.attention import CpuAttention, fits
from sgl_mlx.metal_kernels import shapes
from sgl_mlx.metal_kernels.pool import PoolLayer
from tests.metal_kernels.cases import Call, Case, assert_close, decode_call, extend_call
from tests.metal_kernels.grid import GROUPS, SINGLE, VARIANTS

BLOCK = 64
"""Keys that a tile takes at a time; see `attention.h`."""

WIDTHS = [(16, 16), (64, 64), (80, 80), (256, 256), (192, 128), (576, 512)]
"""Widths of keys and values."""

CASES = [
    Case(
        dim=dim,
        value_dim=value_dim,
        dtype=mx.float32,
        group=group,
        kv_heads=2,
        window=variant.window,
        softcap=variant.softcap,
        sinks=variant.sinks,
        quantized=variant.quantized,
        scattered=variant.scattered,
        loud=variant.loud,
    )
    for dim, value_dim in WIDTHS
    for group in (GROUPS if dim < 500 else [2])
    for variant in VARIANTS.values()
]


@pytest.fixture(scope="module", autouse=True)
def _every_head_dim() -> Iterator[None]:
    """The reference takes the dims of Metal's kernels alone; these here take more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "WIDTHS", (*WIDTHS, (32, 32), (48, 32)))
        yield


def check(call: Call, kernels: ModuleType) -> None:
    attention = CpuAttention(kernels)
    run = attention.extend if call.op == "extend_attention" else attention.decode
    assert_close(run(call.inputs), call.reference(), mx.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_of_every_length(case: Case, kernels: ModuleType) -> None:
    rows = [(0, 1), (BLOCK - 1, 1), (BLOCK, 97), (BLOCK + 1, 33), (0, BLOCK + 1), (2, 31)]
    check(extend_call(case, rows), kernels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode_over_a_tree_of_shared_spans(case: Case, kernels: ModuleType) -> None:
    spans = [(0, 4, 0, BLOCK + 1), (1, 4, BLOCK + 1, BLOCK), (2, 4, 2 * BLOCK + 1, BLOCK - 1)]
    check(decode_call(case, [0, 3, 33, 1, 5, 132], 2, spans), kernels)


@pytest.mark.parametrize("tokens", [2, 5, 8])
def test_several_new_tokens_see_each_other_causally(tokens: int, kernels: ModuleType) -> None:
    case = Case(dtype=mx.float32, group=3, kv_heads=2, window=40)
    check(decode_call(case, [9, 0, 40], tokens + 1, [(0, 2, 0, 33)], tokens=tokens), kernels)


@settings(max_examples=60, deadline=None)
@given(
    private=st.lists(st.integers(0, 150), min_size=1, max_size=40),
    tail=st.integers(1, 40),
    shared=st.integers(1, 200),
    edges=st.tuples(st.integers(0, 39), st.integers(1, 40)),
    window=st.none() | st.integers(1, 300),
    dim=st.sampled_from([32, 48]),
    seed=st.integers(0, 99),
)
def test_any_rows_over_any_span(
    private: list[int],
    tail: int,
    shared: int,
    edges: tuple[int, int],
    window: int | None,
    dim: int,
    seed: int,
    kernels: ModuleType,
) -> None:
    first = min(edges[0], len(private) - 1)
    last = min(max(first + 1, edges[1]), len(private))
    case = Case(dim=dim, value_dim=32, dtype=mx.float32, group=3, kv_heads=2, window=window)
    check(decode_call(case, private, tail, [(first, last, 0, shared)], seed=seed), kernels)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 150)), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_any_chunks(
    rows: list[tuple[int, int]], window: int | None, seed: int, kernels: ModuleType
) -> None:
    case = Case(dim=32, dtype=mx.float32, group=3, kv_heads=2, window=window)
    check(extend_call(case, rows, seed), kernels)


def test_queries_and_keys_need_not_lie_in_order(kernels: ModuleType) -> None:
    call = extend_call(SINGLE, [(5, 7), (70, 3)])
    plain = CpuAttention(kernels).extend(call.inputs)
    for name in ("q", "keys", "values"):
        call.arguments[name] = mx.contiguous(call.arguments[name].swapaxes(0, 2)).swapaxes(0, 2)
    assert mx.array_equal(plain, CpuAttention(kernels).extend(call.inputs))


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "8-bit"])
@pytest.mark.parametrize("op", ["extend", "decode"])
def test_values_may_be_the_first_columns_of_the_keys(
    op: str, quantized: bool, kernels: ModuleType
) -> None:
    """As latents are: the pool's keys are given twice, and new values are a view of new keys."""
    case = Case(dim=48, value_dim=32, dtype=mx.float32, group=4, kv_heads=2, quantized=quantized)
    call = (
        extend_call(case, [(5, 7), (70, 3)])
        if op == "extend"
        else decode_call(case, [9, 0, 70], 4, [(0, 2, 0, 33)])
    )
    keys, values = ("keys", "values") if op == "extend" else ("tail_keys", "tail_values")
    pool: PoolLayer = call.arguments["pool"]
    call.arguments[values] = call.arguments[keys][..., :32]
    shared = {}
    for name, columns in (("view", pool.keys), ("copy", mx.contiguous(pool.keys[..., :32]))):
        call.arguments["pool"] = pool._replace(values=columns, value_scales=pool.key_scales)
        shared[name] = getattr(CpuAttention(kernels), op)(call.inputs)
    assert_close(shared["copy"], call.reference(), mx.float32)
    assert mx.array_equal(shared["view"], shared["copy"])


def test_what_they_do_not_take_is_refused(kernels: ModuleType) -> None:
    assert not fits(40, 40, mx.float32)
    assert not fits(64, 40, mx.float32)
    assert fits(576, 512, mx.float32)
    assert not fits(64, 64, mx.bfloat16)
    call = extend_call(Case(dtype=mx.float16), [(5, 7)])
    with pytest.raises(ValueError, match="dtype"):
        CpuAttention(kernels).extend(call.inputs)
