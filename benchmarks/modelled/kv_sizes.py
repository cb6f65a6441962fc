"""Bytes that the keys and values of a token take in memory and on disk, for well-known models.

They are computed by `KVPool.bytes_per_slot` from layers, KV heads and head width of each model,
which are entered by hand. No model is loaded, and nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.pool.kv import KVPool

INTRODUCTION = """\
Computed, not measured: from layers, KV heads and head width of each model, entered by hand and
not yet compared with the models' files. A file of the disk tier holds what the pool holds, so a
token takes as much there; a header of a few kilobytes for each 64 tokens is added. `sgl-mlx models
kv` prints the table."""
HEADS = ("model", "layers x heads x width", "a token", "with 8 bits", "32,768 tokens", "a GB holds")
_LONG = 32768

# (layers, KV heads, head width); the same width for keys and values
CONFIGURATIONS: dict[str, tuple[int, int, int]] = {
    "SmolLM2-135M": (30, 3, 64),
    "Qwen2.5-0.5B": (24, 2, 64),
    "Qwen3-0.6B": (28, 8, 128),
    "Llama-3.2-1B": (16, 8, 64),
    "Gemma-2-2B": (26, 4, 256),
    "Llama-3.2-3B": (28, 8, 128),
    "Phi-3.5-mini": (32, 32, 96),
    "Qwen3-4B": (36, 8, 128),
    "Qwen2.5-7B": (28, 4, 128),
    "Mistral-7B-v0.3": (32, 8, 128),
    "Llama-3.1-8B": (32, 8, 128),
    "Qwen3-8B": (36, 8, 128),
    "Gemma-2-9B": (42, 8, 256),
    "Phi-4 (14B)": (40, 10, 128),
    "Qwen3-14B": (40, 8, 128),
    "Qwen3-30B-A3B": (48, 4, 128),
    "Qwen3-32B": (64, 8, 128),
    "Mixtral-8x7B": (32, 8, 128),
    "Llama-3.1-70B": (80, 8, 128),
}


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


def rows() -> Iterator[Row]:
    """Yield a row for each model, smaller models first."""
    for model, (layers, heads, width) in CONFIGURATIONS.items():
        shapes = [LayerShape(heads, width, width)] * layers
        sizes = (KVPool.bytes_per_slot(shapes, mx.bfloat16, bits) for bits in (None, 8))
        yield Row(model, (layers, heads, width), *sizes)
