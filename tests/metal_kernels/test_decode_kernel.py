"""The decode and shared kernels, merged, in the emulator against the reference."""

from __future__ import annotations

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels.build import Kernels
from tests.metal_kernels.cases import Case, assert_close, decode_call
from tests.metal_kernels.grid import POINTS, SINGLE, tile_keys


@pytest.mark.parametrize("case", POINTS)
def test_rows_of_every_length_with_a_tree_of_shared_spans(case: Case, kernels: Kernels) -> None:
    keys = tile_keys(case)
    spans = [(0, 4, 0, keys + 1), (1, 4, keys + 1, keys), (2, 4, 2 * keys + 1, keys - 1)]
    call = decode_call(case, [0, 3, 33, 1, 5, 32], 2, spans, chunk=32)
    assert_close(call.run(kernels), call.reference(), case.dtype)


@pytest.mark.parametrize("tail", [1, 3, 4, 5, 31, 32, 33])
@pytest.mark.parametrize("prefix", [0, 1, 31, 32, 33, 64])
def test_chunks_that_end_anywhere_in_prefix_or_tail(
    prefix: int, tail: int, kernels: Kernels
) -> None:
    call = decode_call(SINGLE, [prefix], tail, chunk=32)
    assert_close(call.run(kernels), call.reference(), mx.float32)


@pytest.mark.parametrize("tokens", [2, 5, 8])
@pytest.mark.parametrize("group", [1, 3, 7])
def test_several_new_tokens_of_a_row_see_each_other_causally(
    tokens: int, group: int, kernels: Kernels
) -> None:
    case = Case(dtype=mx.float32, group=group, kv_heads=2)
    call = decode_call(case, [9, 0, 40], tokens + 1, [(0, 2, 0, 33)], tokens=tokens, chunk=32)
    assert_close(call.run(kernels), call.reference(), mx.float32)


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 60])
def test_a_window_ends_in_tail_private_prefix_or_span(window: int, kernels: Kernels) -> None:
    case = Case(dtype=mx.float32, group=3, window=window)
    spans = [(0, 3, 0, 40), (1, 3, 40, 9)]
    call = decode_call(case, [20, 1, 13], 4, spans, tokens=2, chunk=16)
    assert_close(call.run(kernels), call.reference(), mx.float32)


def test_more_rows_than_a_tile_of_a_span_holds(kernels: Kernels) -> None:
    case = Case(dtype=mx.float32, group=3)
    call = decode_call(case, [1] * 23, 1, [(1, 23, 0, 35)])
    assert_close(call.run(kernels), call.reference(), mx.float32)
