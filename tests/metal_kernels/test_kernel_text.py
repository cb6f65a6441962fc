"""The kernels' text, as MLX would hand it to Apple's compiler, where no Apple compiler is."""

from __future__ import annotations

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels.build import Kernels
from tests.metal_kernels.cases import Case, assert_close, decode_call
from tests.metal_kernels.emulator import Emulator, check_types, lint, needs_compiler
from tests.metal_kernels.work import WORK


@needs_compiler
@pytest.mark.parametrize("work", WORK)
def test_every_specialisation_keeps_its_address_spaces_and_limits(work: str) -> None:
    emulator = Emulator()
    WORK[work](Kernels(emulator.metal_kernel))
    assert emulator.launches
    for msl in {launch.msl for launch in emulator.launches}:
        check_types(msl)
        assert lint(msl) == []


@needs_compiler
@pytest.mark.parametrize(("private", "shared"), [(3, 600), (600, 3)])
def test_one_head_leaves_a_table_so_small_that_mlx_moves_it_to_another_address_space(
    private: int, shared: int
) -> None:
    one = Case(dim=64, dtype=mx.float32, group=1, kv_heads=1)
    call = decode_call(one, [private, 5], 1, [(0, 2, 0, shared)], chunk=64)
    emulator = Emulator()
    assert_close(call.run(Kernels(emulator.metal_kernel)), call.reference(), mx.float32)
    merging = next(x.msl for x in emulator.launches if "merge_partials" in x.msl.name)
    check_types(merging)
    small = "own" if private < shared else "shared"
    assert f"const constant float* {small}_peaks" in merging.text
