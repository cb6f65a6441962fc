"""Building of the kernels from their `.metal` sources.

By default `mx.fast.metal_kernel` builds the kernels. Tests replace it by an emulator with the same
signature, which runs the same sources without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import mlx.core as mx

from sgl_mlx.metal_kernels.plan import MIN_ELEMENTS

POOL = ("pool_keys", "pool_values", "key_scales", "value_scales")


@dataclass(frozen=True)
class Spec:
    """Names of the inputs and outputs of the kernel in `<name>.metal`, in the order of buffers."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def source(self) -> str:
        return read(f"{self.name}.metal")


SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "extend_attention",
            ("q", "new_keys", "new_values", *POOL, "slots", "rows", "tiles", "reals", "sinks"),
            ("out",),
        ),
        Spec(
            "decode_attention",
            ("q", "tail_keys", "tail_values", *POOL, "slots", "rows", "items", "reals", "ints"),
            ("out", "peaks", "masses"),
        ),
        Spec(
            "shared_attention",
            ("q", *POOL, "slots", "rows", "tiles", "reals", "ints"),
            ("out", "peaks", "masses"),
        ),
        Spec(
            "merge_partials",
            (
                *("own_out", "own_peaks", "own_masses"),
                *("shared_out", "shared_peaks", "shared_masses"),
                *("merges", "shared_partials", "ints", "sinks"),
            ),
            ("out",),
        ),
    )
}


Factory = Callable[..., Any]
"""Callable with the signature of `mx.fast.metal_kernel`."""

Launch = Callable[..., list[mx.array]]
"""Prepared launch of a kernel: takes inputs by name, returns the outputs."""


class Kernels:
    """The kernels, each built at its first launch.

    Args:
        factory: builds a kernel: `mx.fast.metal_kernel`, or an emulator with its signature.

    Attributes:
        absent: placeholder for inputs that a kernel does not read.
    """

    def __init__(self, factory: Factory = mx.fast.metal_kernel) -> None:
        self._factory = factory
        self._made: dict[str, Any] = {}
        self.absent = mx.array([0.0] * MIN_ELEMENTS, mx.float16)

    def launch(self, name: str, inputs: Mapping[str, mx.array], **call: Any) -> list[mx.array]:
        """Run the kernel `name` and return its outputs; `call` is passed to MLX's kernel.

        Args:
            inputs: arrays by the names in the kernel's `Spec`.
        """
        return self.prepare(name, inputs, **call)()

    def prepare(self, name: str, inputs: Mapping[str, mx.array], **call: Any) -> Launch:
        """Return a function that runs the kernel `name`, for launches that differ in few inputs.

        The function takes the inputs that differ as keyword arguments, and returns the kernel's
        outputs. `call` is passed to MLX's kernel.

        Args:
            inputs: arrays that are the same in all launches, by the names in the kernel's `Spec`.
        """
        names, kernel = SPECS[name].inputs, self._kernel(name)

        def launch(**others: mx.array) -> list[mx.array]:
            every = {**inputs, **others}
            return list(kernel(inputs=[every[x] for x in names], **call))

        return launch

    def _kernel(self, name: str) -> Any:
        if name not in self._made:
            spec = SPECS[name]
            self._made[name] = self._factory(
                name=f"sgl_mlx_{name}",
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                source=spec.source,
                header=read("attention.h"),
            )
        return self._made[name]


def read(name: str) -> str:
    """Read a source file of this package; MLX requires it to be ASCII."""
    return files(__package__).joinpath(name).read_text("ascii")
