"""Memory that an engine takes on Macs of several sizes, and how much is left for other programs.

The engine takes memory for the weights and for a KV pool of the default size.

Sizes are computed by the engine's own code (`models.memory.check_fits`,
`runtime.pool.memory.pool_slots`). The Macs are modelled: Apple's recommended working set follows
from the memory, and macOS and other programs take a fixed size.
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
"""Sizes of memory that Macs are sold with, in GiB."""

OTHERS = 3 * GIB
"""Assumed bytes that macOS and other programs take before a model is loaded."""

_SMALL = 36 * GIB
"""With at most this much memory, Metal recommends two thirds for the GPU; else three quarters."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model.

    Attributes:
        weights: bytes of the weights.
        context: most tokens of a sequence.
        layers: shape of each layer's KV cache.
    """

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
    """Memory of an engine on one Mac, in bytes.

    Attributes:
        memory: memory of the Mac.
        usable: memory that weights and KV pool may take.
        slots: number of slots (tokens) of the KV pool.
        pool: size of the KV pool.
        total: size of weights and KV pool.
        refusal: the engine's error if it does not start; else None.
    """

    memory: int
    usable: int
    slots: int = 0
    pool: int = 0
    total: int = 0
    refusal: str | None = None

    @property
    def left(self) -> int:
        """Bytes left for the system and other programs."""
        return self.memory - self.total


def table(shape: Shape = LLAMA_8B, kv_bits: int | None = None) -> Iterator[Row]:
    """Yield a row for each of `SIZES`, smallest first; `kv_bits` as in `row`."""
    for size in SIZES:
        yield row(size * GIB, shape, kv_bits)


def row(memory: int, shape: Shape, kv_bits: int | None = None) -> Row:
    """Compute what an engine with default options would allocate on a Mac with `memory` bytes.

    Args:
        kv_bits: bits per number in the KV pool; None keeps the pool in bfloat16.
    """
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
