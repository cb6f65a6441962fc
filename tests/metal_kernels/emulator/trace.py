"""The text that MLX would hand to Apple's compiler, and what its signature says.

`mx.export_function` traces a call of a Metal kernel without a Metal back end and reports the
finished text, byte for byte as it would be compiled (MLX puts its own `utils.h` before it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from tests.metal_kernels.emulator.errors import Unsupported

_BUFFER = re.compile(r"(?P<type>[^,(]+?)\s*(?P<kind>[*&])\s+(?P<name>\w+) \[\[buffer\((\d+)\)\]\]")
_POSITION = re.compile(r"(?P<type>\w+) (?P<name>\w+) \[\[(?P=name)\]\]")


@dataclass(frozen=True)
class Buffer:
    """One buffer of the signature: `kind` is `*` (a pointer) or `&` (a scalar)."""

    name: str
    type: str
    kind: str

    @property
    def space(self) -> str:
        return "constant" if "constant" in self.type.split() else "device"


@dataclass(frozen=True)
class Msl:
    """A traced kernel: `text` is what MLX compiles, `call` names the specialisation."""

    name: str
    text: str
    call: str
    buffers: tuple[Buffer, ...]
    positions: tuple[str, ...]


def trace(call: Callable[..., Sequence[mx.array]], inputs: Sequence[mx.array]) -> Msl:
    """Trace the text that `call(*inputs)`, one call of an MLX kernel, would compile."""
    primitives: list[dict[str, Any]] = []
    mx.export_function(primitives.append, call, *inputs)
    kernels = [p["arguments"] for p in primitives if p.get("name") == "CustomKernel"]
    if len(kernels) != 1:
        raise Unsupported(
            f"a call of one Metal kernel was to be traced, but it made {len(kernels)}"
        )
    return parse(kernels[0][0], kernels[0][1])


def traced_msl(call: Callable[..., Sequence[mx.array]], inputs: Sequence[mx.array]) -> str:
    """The text that MLX would compile for `call(*inputs)`; `call` uses MLX's own kernel object."""
    return trace(call, inputs).text


def parse(name: str, text: str) -> Msl:
    """Read the signature and the instantiation that MLX generated around a kernel's body."""
    head = text.index(f"[[kernel]] void {name}(")
    signature = text[head : text.index(") {", head)].partition("(")[2]
    buffers = tuple(
        Buffer(m["name"], m["type"].strip(), m["kind"]) for m in _BUFFER.finditer(signature)
    )
    positions = tuple(m["name"] for m in _POSITION.finditer(signature))
    made = re.search(rf"decltype\(({re.escape(name)}<[^;]*>)\) {re.escape(name)}<", text)
    return Msl(name, text, made[1] if made else name, buffers, positions)
