"""Memory of an engine on Macs of several sizes: weights, default KV pool, and what is left.

The rules are the engine's own (`models.memory.check_fits`, `runtime.pool.memory.pool_slots`); the
machines are modelled: Apple's recommended working set by size, and a fixed share for everybody
else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.memory import check_fits
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.memory import ENOUGH, pool_slots

GIB = 2**30
SIZES = (8, 16, 32, 64, 192, 512)
"""Memory of Macs that are sold, in GiB."""

OTHERS = 3 * GIB
"""Assumed: taken by macOS and other programs before a model is loaded."""

_SMALL = 36 * GIB
"""Up to here Metal recommends two thirds of the memory for the GPU, above it three quarters."""


@dataclass(frozen=True)
class Shape:
    """A language model, as far as memory goes: `weights` in bytes, KV by `layers`."""

    name: str
    weights: int
    context: int
    layers: tuple[LayerShape, ...]


LLAMA_8B = Shape(
    # 8.03e9 numbers of 4.5 bits each (4 bits, and 32 bits of scale and bias for 64 of them)
    "Llama-3.1-8B-Instruct-4bit",
    int(8.03e9 * 4.5 / 8),
    131072,
    (LayerShape(8, 128, 128),) * 32,
)


@dataclass(frozen=True)
class Row:
    """One Mac; all sizes in bytes. `refusal` is the engine's error where it does not start."""

    memory: int
    usable: int
    slots: int = 0
    pool: int = 0
    total: int = 0
    refusal: str | None = None

    @property
    def left(self) -> int:
        """Bytes for the system and other programs."""
        return self.memory - self.total


def table(shape: Shape = LLAMA_8B, kv_bits: int | None = None) -> Iterator[Row]:
    """Rows for all `SIZES`, smallest first."""
    for size in SIZES:
        yield row(size * GIB, shape, kv_bits)


def row(memory: int, shape: Shape, kv_bits: int | None = None) -> Row:
    """Size what an engine with default options would allocate on a Mac with so much memory."""
    recommended = memory * 2 // 3 if memory <= _SMALL else memory * 3 // 4
    usable = min(memory - OTHERS, recommended)
    try:
        check_fits(shape.name, shape.weights, usable, "its weights")
        room = usable - shape.weights
        slots = min(
            pool_slots(None, shape.context, shape.layers, mx.bfloat16, room, kv_bits), ENOUGH
        )
    except MemoryLimitError as error:
        return Row(memory, usable, refusal=str(error))
    pool = slots * KVPool.bytes_per_slot(shape.layers, mx.bfloat16, kv_bits)
    return Row(memory, usable, slots, pool, shape.weights + pool)
