"""Runs Metal kernels on the CPU, as the GPU's rules would have it, and traps what breaks them.

`metal_kernel` has the signature of `mx.fast.metal_kernel` and may be used wherever that is; an
`Emulator` is such a factory with settings of its own (schedules, inputs that may be written) and a
record of its launches with exact counts. What is compiled is the text that MLX itself generates.

Needs clang++ of version 16 or later, for `_Float16` that is rounded after every operation.
"""

import pytest

from tests.metal_kernels.emulator.errors import CompileError, EmulatorError, Trap, Unsupported
from tests.metal_kernels.emulator.kernel import EmulatedKernel, Emulator, Launch
from tests.metal_kernels.emulator.machine import SCHEDULES, Counters
from tests.metal_kernels.emulator.static_check import check_types, lint
from tests.metal_kernels.emulator.toolchain import compiler
from tests.metal_kernels.emulator.trace import Msl, traced_msl

__all__ = [
    "SCHEDULES",
    "CompileError",
    "Counters",
    "EmulatedKernel",
    "Emulator",
    "EmulatorError",
    "Launch",
    "Msl",
    "Trap",
    "Unsupported",
    "check_types",
    "compiler",
    "lint",
    "metal_kernel",
    "needs_compiler",
    "traced_msl",
]

metal_kernel = Emulator().metal_kernel

needs_compiler = pytest.mark.skipif(
    compiler() is None, reason="no clang++ of version 16 or later (Debian: apt install clang-19)"
)
