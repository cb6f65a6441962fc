"""Bytes that the keys and values of a token take in memory and on disk.

They are computed by `KVPool.bytes_per_slot` from the fields of published configurations. For any
other configuration (`of_config`), the layers are found as when the model is loaded, but without
its weights. Nothing is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from sgl_mlx.benchmarks.modelled.published_shapes import PUBLISHED, Published
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.build import model_classes
from sgl_mlx.runtime.pool.kv import KVPool

INTRODUCTION = """\
Computed, not measured: by the function that sizes the pool, from the fields of the models'
published configurations (`benchmarks/modelled/published_shapes.py` has them with their sources).
Models with multi-head latent attention (MLA) keep one latent a layer for all heads. A file of the
disk tier holds what the pool holds, so a token takes as much there; a header of a few kilobytes for
each 64 tokens is added. `sgl-mlx models kv` prints the table, and `sgl-mlx models kv FOLDER` a row
from a `config.json`."""
HEADS = ("model", "layers x heads x width", "a token", "with 8 bits", "32,768 tokens", "a GB holds")
_LONG = 32768


def _latent(layers: int, rank: int, rope: int) -> tuple[LayerShape, ...]:
    return (LayerShape(1, rank + rope, rank, values_in_keys=True),) * layers


def shapes_of(published: Published) -> tuple[LayerShape, ...]:
    """Return the shapes of a model's layers, as the KV pool takes them."""
    heads, width = published.num_key_value_heads, published.width
    return (LayerShape(heads, width, width),) * published.num_hidden_layers


LATENTS = {
    "DeepSeek-V2-Lite": _latent(27, 512, 64),
    "DeepSeek-V3": _latent(61, 512, 64),
    "GLM-4.7-Flash": _latent(47, 512, 64),
    "MiniCPM3-4B": _latent(62, 256, 32),
    "Kimi-K2": _latent(61, 512, 64),
}
"""Layers of models with MLA, from `num_hidden_layers`, `kv_lora_rank` and `qk_rope_head_dim`."""
CONFIGURATIONS = {**{model: shapes_of(found) for model, found in PUBLISHED.items()}, **LATENTS}


@dataclass(frozen=True)
class Row:
    """Row of the table: one model.

    Attributes:
        layers: text such as `26 x 4 x 256`: for each kind of layer, the number of layers, the
            number of KV heads, the width of a head, and the window if there is one.
        token: bytes of a token's keys and values in 16 bits.
        token_8_bits: bytes of a token's keys and values in 8 bits.
    """

    model: str
    layers: str
    token: int
    token_8_bits: int

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the row's cells, in the order of `HEADS`."""
        return (
            self.model,
            self.layers,
            f"{self.token / 1024:.1f} KiB",
            f"{self.token_8_bits / 1024:.1f} KiB",
            f"{_LONG * self.token / 2**30:.2f} GiB",
            f"{10**9 // self.token:,} tokens",
        )


def rows() -> Iterator[Row]:
    """Yield a row for each known model, smaller models first, then those with MLA."""
    for model, layers in CONFIGURATIONS.items():
        yield row(model, layers)


def row(model: str, layers: Sequence[LayerShape]) -> Row:
    """Make the row of a model with these layers."""
    sizes = (KVPool.bytes_per_slot(layers, mx.bfloat16, bits) for bits in (None, 8))
    return Row(model, _in_words(layers), *sizes)


def of_config(model: str, config: dict[str, Any]) -> Row:
    """Make the row of a model from its configuration; its weights are neither read nor made.

    Raises:
        UnsupportedModelError: for an architecture or a configuration that does not run.
    """
    model_class, args_class = model_classes(config)
    return row(model, adapter_for(model_class(args_class.from_dict(config))).layers)


def _in_words(layers: Sequence[LayerShape]) -> str:
    kinds = Counter(f"{x.heads} x {_width(x)}" for x in layers)
    return " + ".join(f"{n} x {kind}" for kind, n in kinds.items())


def _width(shape: LayerShape) -> str:
    if shape.values_in_keys:
        return f"{shape.key_dim} latent"
    same = shape.key_dim == shape.value_dim
    width = f"{shape.key_dim}" if same else f"{shape.key_dim}/{shape.value_dim}"
    return width if shape.window is None else f"{width} (window {shape.window})"
