"""The `.metal` sources as callables, made by a factory.

The factory has the signature of `mx.fast.metal_kernel`, which is the default; an emulator with the
same signature runs the same text without a GPU.
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
    """Names of a kernel's inputs and outputs, in the order of its buffers, for `<name>.metal`."""

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


class Kernels:
    """Kernels of one factory, each made at its first launch.

    `absent` stands in for inputs that a specialisation does not read.
    """

    def __init__(self, factory: Factory = mx.fast.metal_kernel) -> None:
        self._factory = factory
        self._made: dict[str, Any] = {}
        self.absent = mx.array([0.0] * MIN_ELEMENTS, mx.float16)

    def launch(self, name: str, inputs: Mapping[str, mx.array], **call: Any) -> list[mx.array]:
        """Run a kernel on `inputs` by name; `call` is passed to MLX's kernel object."""
        spec = SPECS[name]
        if name not in self._made:
            self._made[name] = self._factory(
                name=f"sgl_mlx_{name}",
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                source=spec.source,
                header=read("attention.h"),
            )
        return list(self._made[name](inputs=[inputs[x] for x in spec.inputs], **call))


def read(name: str) -> str:
    """Read the text of a source file, in ASCII as MLX requires."""
    return files(__package__).joinpath(name).read_text("ascii")
