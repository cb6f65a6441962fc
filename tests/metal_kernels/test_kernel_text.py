"""The kernels' text, as MLX would hand it to Apple's compiler, where no Apple compiler is."""

from __future__ import annotations

import pytest

from sgl_mlx.metal_kernels.build import Kernels
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
