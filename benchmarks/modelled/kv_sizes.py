"""Bytes that the keys and values of a token take in memory and on disk, for well-known models.

They are computed by `KVPool.bytes_per_slot` from the fields of each model's published
configuration. No model is loaded, and nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from sgl_mlx.benchmarks.modelled.published_shapes import PUBLISHED, Published
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.pool.kv import KVPool

INTRODUCTION = """\
Computed, not measured: by the function that sizes the pool, from the fields of the models'
published configurations (`benchmarks/modelled/published_shapes.py` has them with their sources). A
file of the disk tier holds what the pool holds, so a token takes as much there; a header of a few
kilobytes for each 64 tokens is added. `sgl-mlx models kv` prints the table."""
HEADS = ("model", "layers x heads x width", "a token", "with 8 bits", "32,768 tokens", "a GB holds")
_LONG = 32768


@dataclass(frozen=True)
class Row:
    """Row of the table: one model.

    Attributes:
        shape: layers, KV heads, and width of a head.
        token: bytes of a token's keys and values in 16 bits.
        token_8_bits: bytes of a token's keys and values in 8 bits.
    """

    model: str
    shape: tuple[int, int, int]
    token: int
    token_8_bits: int

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the row's cells, in the order of `HEADS`."""
        return (
            self.model,
            " x ".join(map(str, self.shape)),
            f"{self.token / 1024:.1f} KiB",
            f"{self.token_8_bits / 1024:.1f} KiB",
            f"{_LONG * self.token / 2**30:.2f} GiB",
            f"{10**9 // self.token:,} tokens",
        )


def shapes_of(published: Published) -> list[LayerShape]:
    """Return the shapes of a model's layers, as the KV pool takes them."""
    heads, width = published.num_key_value_heads, published.width
    return [LayerShape(heads, width, width)] * published.num_hidden_layers


def rows() -> Iterator[Row]:
    """Yield a row for each model, smaller models first."""
    for model, published in PUBLISHED.items():
        shapes = shapes_of(published)
        sizes = (KVPool.bytes_per_slot(shapes, mx.bfloat16, bits) for bits in (None, 8))
        yield Row(model, (len(shapes), shapes[0].heads, shapes[0].key_dim), *sizes)
