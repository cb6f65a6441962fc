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
from sgl_mlx.runtime.pool.kv import KVPool, windowed

INTRODUCTION = """\
Computed, not measured: by the function that sizes the pool, from the fields of the models'
published configurations (`benchmarks/modelled/published_shapes.py` has them with their sources).
Models with multi-head latent attention (MLA) keep one latent a layer for all heads. Layers with a
sliding window, beside layers that attend to all tokens, keep the tokens of the window alone; with a
disk cache, up to 126 tokens more. A file of the disk tier holds what the pool holds, so a token
takes as much there, and a window as much for each place where a prompt or an answer ended; a header
of a few kilobytes for each 64 tokens is added. `sgl-mlx models kv` prints the table, and
`sgl-mlx models kv FOLDER` a row from a `config.json`."""
HEADS = (
    *("model", "layers x heads x width", "a token", "with 8 bits", "a window"),
    *("32,768 tokens", "a GB holds"),
)
_LONG = 32768


def _latent(layers: int, rank: int, rope: int) -> tuple[LayerShape, ...]:
    return (LayerShape(1, rank + rope, rank, values_in_keys=True),) * layers


def shapes_of(published: Published) -> tuple[LayerShape, ...]:
    """Return the shapes of a model's layers, as the KV pool takes them."""
    heads, width = published.num_key_value_heads, published.width
    return (LayerShape(heads, width, width),) * published.num_hidden_layers


def _windowed(
    full: int, sliding: int, window: int, heads: int, width: int
) -> tuple[LayerShape, ...]:
    """Return the shapes of layers that attend to all tokens, then of those with a window."""
    shape = LayerShape(heads, width, width)
    return (shape,) * full + (shape._replace(window=window),) * sliding


WINDOWED = {
    "gpt-oss-20b": _windowed(12, 12, 128, 8, 64),
    "gpt-oss-120b": _windowed(18, 18, 128, 8, 64),
    "Gemma-3-27B": _windowed(10, 52, 1024, 16, 128),
}
"""Layers of models in which some layers attend only to a window.

They are the `num_hidden_layers` of the configuration, of which `layer_types` (every second layer
of gpt-oss) or `sliding_window_pattern` (all but each sixth layer of Gemma 3) have a window.
"""
LATENTS = {
    "DeepSeek-V2-Lite": _latent(27, 512, 64),
    "DeepSeek-V3": _latent(61, 512, 64),
    "GLM-4.7-Flash": _latent(47, 512, 64),
    "MiniCPM3-4B": _latent(62, 256, 32),
    "Kimi-K2": _latent(61, 512, 64),
}
"""Layers of models with MLA, from `num_hidden_layers`, `kv_lora_rank` and `qk_rope_head_dim`."""
CONFIGURATIONS = {
    **{model: shapes_of(found) for model, found in PUBLISHED.items()},
    **WINDOWED,
    **LATENTS,
}


@dataclass(frozen=True)
class Row:
    """Row of the table: one model.

    Attributes:
        layers: text such as `26 x 4 x 256`: for each kind of layer, the number of layers, the
            number of KV heads, the width of a head, and the window if there is one.
        token: bytes of a token's keys and values in 16 bits, without those of a window.
        token_8_bits: bytes of a token's keys and values in 8 bits, without those of a window.
        window: most tokens that a sequence keeps in layers with a window; 0 without such layers.
        window_token, window_token_8_bits: bytes of a token of the window in these layers.
    """

    model: str
    layers: str
    token: int
    token_8_bits: int
    window: int = 0
    window_token: int = 0
    window_token_8_bits: int = 0

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the row's cells, in the order of `HEADS`."""
        window = self.window * self.window_token
        return (
            self.model,
            self.layers,
            f"{self.token / 1024:.1f} KiB",
            f"{self.token_8_bits / 1024:.1f} KiB",
            f"{self.window:,} x {self.window_token / 1024:.1f} KiB" if window else "",
            f"{(_LONG * self.token + window) / 2**30:.2f} GiB",
            f"{(10**9 - window) // self.token:,} tokens",
        )


def rows() -> Iterator[Row]:
    """Yield a row for each known model: smaller ones first, then models with windows, then MLA."""
    for model, layers in CONFIGURATIONS.items():
        yield row(model, layers)


def row(model: str, layers: Sequence[LayerShape]) -> Row:
    """Make the row of a model with these layers."""
    found = windowed(layers)
    inside = [layers[i] for i in sorted(found)]
    others = [x for i, x in enumerate(layers) if i not in found]
    window = max((x.window or 0 for x in inside), default=0)
    token, token_8_bits = _sizes(others)
    window_token, window_token_8_bits = _sizes(inside)
    return Row(
        model=model,
        layers=_in_words(layers),
        token=token,
        token_8_bits=token_8_bits,
        window=window,
        window_token=window_token,
        window_token_8_bits=window_token_8_bits,
    )


def _sizes(layers: Sequence[LayerShape]) -> tuple[int, int]:
    """Return the bytes of a slot in 16 and in 8 bits."""
    plain, quantized = (KVPool.bytes_per_slot(layers, mx.bfloat16, bits) for bits in (None, 8))
    return plain, quantized


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
