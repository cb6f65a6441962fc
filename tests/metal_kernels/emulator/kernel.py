"""The factory and the kernel object, with the signatures of MLX's own.

`metal_kernel` stands in for `mx.fast.metal_kernel`. The object it returns is called as MLX's is,
evaluates its inputs and returns finished arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from tests.metal_kernels.emulator import arrays, toolchain
from tests.metal_kernels.emulator.errors import Trap
from tests.metal_kernels.emulator.machine import Counters, Placed, Program, Triple
from tests.metal_kernels.emulator.rewrite import rewrite
from tests.metal_kernels.emulator.trace import Buffer, Msl, trace

_MLX_FACTORY = mx.fast.metal_kernel  # kept: tests put the emulator in its place
MOST_THREADGROUP_BYTES = 32 << 10
_HEADER = '#include "metal_matrix.hpp"\n#include "metal_positions.hpp"\n'


@dataclass
class Launch:
    """One dispatch as it was made, for counting and for looking at."""

    msl: Msl
    grid: Triple
    threadgroup: Triple
    counters: Counters


@dataclass
class Emulator:
    """A factory of kernels with its own settings.

    schedules: each launch runs once under every one of them, and all must agree to the bit
    writable: names of inputs that kernels write in place (their arrays change, as on a GPU)
    seconds: an endless loop is cut off after this time
    launches: every dispatch so far, in order
    """

    schedules: Sequence[str] = ("forward",)
    writable: frozenset[str] = frozenset()
    seconds: float = 120.0
    launches: list[Launch] = field(default_factory=list)

    def metal_kernel(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: object | None = None,
    ) -> EmulatedKernel:
        mlx_kernel = _MLX_FACTORY(
            name,
            input_names,
            output_names,
            source,
            header,
            ensure_row_contiguous,
            atomic_outputs,
            compile_options,
        )
        names = tuple(input_names), tuple(output_names)
        return EmulatedKernel(self, mlx_kernel, *names, ensure_row_contiguous)


@dataclass
class EmulatedKernel:
    """Called as MLX's kernel object is; see `mx.fast.metal_kernel`."""

    emulator: Emulator
    mlx_kernel: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    row_contiguous: bool
    _traced: dict[tuple[Any, ...], Msl] = field(default_factory=dict, repr=False)

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array | bool | int | float],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Triple,
        threadgroup: Triple,
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: mx.Stream | mx.Device | None = None,
    ) -> list[mx.array]:
        given = [arrays.as_input(x, self.row_contiguous) for x in inputs]
        call = {
            "output_shapes": output_shapes,
            "output_dtypes": output_dtypes,
            "grid": grid,
            "threadgroup": threadgroup,
            "template": template or [],
        }
        msl = self._msl(given, call)
        if verbose:
            print(f"Generated source code for `{msl.name}`:\n```\n{msl.text}\n```")  # noqa: T201
        outputs = _outputs(self.output_names, output_shapes, output_dtypes, init_value)
        placed = [self._place(buffer, given, outputs) for buffer in msl.buffers]
        contents = self._run(msl, placed, tuple(grid), tuple(threadgroup))
        for name, array in zip(self.input_names, given, strict=True):
            if name in self.emulator.writable and name in contents:
                arrays.write_in_place(array, contents[name])
        return [
            arrays.from_bytes(contents.get(name, outputs[name].data or b""), tuple(shape), dtype)
            for name, shape, dtype in zip(
                self.output_names, output_shapes, output_dtypes, strict=True
            )
        ]

    def _msl(self, given: Sequence[mx.array], call: dict[str, Any]) -> Msl:
        types = tuple((x.dtype, min(x.size, 8), x.ndim == 0) for x in given)
        key = (types, tuple(call["template"]), tuple(call["output_dtypes"]))
        if key not in self._traced:
            self._traced[key] = trace(lambda *xs: self.mlx_kernel(inputs=list(xs), **call), given)
        return self._traced[key]

    def _place(
        self, buffer: Buffer, given: Sequence[mx.array], outputs: dict[str, Placed]
    ) -> Placed:
        if buffer.name in outputs:
            return outputs[buffer.name]
        for name, array in zip(self.input_names, given, strict=True):
            if buffer.name == name:
                content = arrays.to_bytes(array)
                return Placed(name, len(content), content, name in self.emulator.writable)
            if buffer.name in (f"{name}_shape", f"{name}_strides", f"{name}_ndim"):
                return _shape_data(buffer.name, array, buffer.name.removeprefix(name))
        raise KeyError(buffer.name)

    def _run(
        self, msl: Msl, placed: Sequence[Placed], grid: Triple, threadgroup: Triple
    ) -> dict[str, bytes]:
        """Contents of the writable buffers by name, the same under every schedule."""
        program, emulator = program_of(msl), self.emulator
        writable = [p.name for p in placed if p.writable]
        agreed: dict[str, bytes] = {}
        for schedule in emulator.schedules:
            contents, counters = program.run(placed, grid, threadgroup, schedule, emulator.seconds)
            if counters.threadgroup_bytes > MOST_THREADGROUP_BYTES:
                what = f"{counters.threadgroup_bytes} of {MOST_THREADGROUP_BYTES} bytes"
                raise Trap("threadgroup memory", what, kernel=msl.name)
            found = dict(zip(writable, contents, strict=True))
            for name, content in found.items():
                if agreed.get(name, content) != content:
                    what = f"{name} under {schedule} is not what {emulator.schedules[0]} gave"
                    raise Trap("schedule matters", what, kernel=msl.name)
            agreed = agreed or found
        emulator.launches.append(Launch(msl, grid, threadgroup, counters))
        return agreed


def _outputs(
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[mx.Dtype],
    init_value: float | None,
) -> dict[str, Placed]:
    made = {}
    for name, shape, dtype in zip(names, shapes, dtypes, strict=True):
        size = int(np.prod(shape, dtype=np.int64)) * dtype.size
        poisoned = init_value is None
        data = None if poisoned else arrays.filled(tuple(shape), dtype, init_value)
        made[name] = Placed(name, size, data, True)
    return made


def _shape_data(name: str, array: mx.array, what: str) -> Placed:
    view = memoryview(array)
    values = {
        "_shape": np.array(array.shape, np.int32),
        "_strides": np.array([s // view.itemsize for s in view.strides or ()], np.int64),
        "_ndim": np.array(array.ndim, np.int32),
    }[what]
    return Placed(name, values.nbytes, values.tobytes(), False)


@cache
def program_of(msl: Msl) -> Program:
    """Rewrite and compile a traced kernel."""
    source = f"{msl.name}.metal"
    arguments = [_argument(i, b) for i, b in enumerate(msl.buffers)]
    arguments += [f"emu::{name}()" for name in msl.positions]
    call = f"{msl.call}({', '.join(arguments)})"
    program = (
        f'{_HEADER}#line 1 "{source}"\n{rewrite(msl.text)}\n'
        f'extern "C" void emu_entry(void* const* buffers) {{ {call}; }}\n'
    )
    return Program(toolchain.kernel(program, msl.name), msl.name, source)


def _argument(index: int, buffer: Buffer) -> str:
    pointer = f"({rewrite(buffer.type)} *)buffers[{index}]"
    return pointer if buffer.kind == "*" else f"*{pointer}"
