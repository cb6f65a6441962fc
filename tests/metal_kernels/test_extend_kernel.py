"""The extend kernel in the emulator against the reference."""

from __future__ import annotations

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels.build import Kernels
from tests.metal_kernels.cases import Case, assert_close, extend_call
from tests.metal_kernels.grid import POINTS, SINGLE, tile_keys


@pytest.mark.parametrize("case", POINTS)
def test_a_ragged_batch_around_every_tile_edge_is_that_of_the_reference(
    case: Case, kernels: Kernels
) -> None:
    keys, tile = tile_keys(case), -(-32 // case.group)
    rows = [(0, 1), (keys - 1, 1), (keys, tile), (keys + 1, tile + 1), (0, keys + 1), (2, tile - 1)]
    call = extend_call(case, [(prefix, tokens) for prefix, tokens in rows if tokens])
    assert_close(call.run(kernels), call.reference(), case.dtype)


@pytest.mark.parametrize("prefix", [0, 1, 31, 32, 33, 64, 97])
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 65])
def test_one_row_of_any_length_over_any_prefix(prefix: int, tokens: int, kernels: Kernels) -> None:
    call = extend_call(SINGLE, [(prefix, tokens)])
    assert_close(call.run(kernels), call.reference(), mx.float32)


@pytest.mark.parametrize("window", [1, 31, 32, 33])
def test_a_window_skips_tiles_and_cuts_others(window: int, kernels: Kernels) -> None:
    call = extend_call(Case(dtype=mx.float32, group=3, window=window), [(70, 40), (3, 70)])
    assert_close(call.run(kernels), call.reference(), mx.float32)


@pytest.mark.parametrize("group", [2, 7])
def test_groups_that_do_not_divide_a_tile(group: int, kernels: Kernels) -> None:
    call = extend_call(Case(dtype=mx.float32, group=group, kv_heads=2), [(5, 9), (33, 12)])
    assert_close(call.run(kernels), call.reference(), mx.float32)
