"""The emulator in place of Metal."""

from __future__ import annotations

import pytest

from sgl_mlx.metal_kernels.build import Kernels
from tests.metal_kernels.emulator import SCHEDULES, Emulator, compiler


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """All four schedules; they must agree to the bit."""
    if compiler() is None:
        pytest.skip("no clang++ of version 16 or later: apt-get install clang-19")
    return Emulator(schedules=SCHEDULES)


@pytest.fixture(scope="session")
def kernels(emulator: Emulator) -> Kernels:
    return Kernels(emulator.metal_kernel)
