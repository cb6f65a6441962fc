"""Toys whose windows are wider than a block of the disk cache, or of several sizes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache

from tests.models.conftest import TOKENS
from tests.models.toy import toy_config, toy_model

WIDE = 100
SEVERAL = (5, None, 70, None)
"""Sizes of the windows of a model of which each layer has its own."""


def wide() -> nn.Module:
    """A gpt-oss with windows of `WIDE` tokens."""
    sizes = {"vocab_size": len(TOKENS), "sliding_window": WIDE}
    return toy_model("gpt_oss", toy_config("gpt_oss") | sizes)


def several() -> nn.Module:
    """A llama whose layers have the windows `SEVERAL`."""
    made = toy_model("llama", toy_config("llama") | {"vocab_size": len(TOKENS)})
    made.__class__ = _mixed(_Caches, type(made))
    made.model.__class__ = _mixed(_Layers, type(made.model))
    return made


def _mixed(first: type, second: type) -> type:
    return type(second.__name__, (first, second), {"__module__": second.__module__})


class _Caches:
    def make_cache(self) -> list[Any]:
        return [KVCache() if w is None else RotatingKVCache(w, keep=0) for w in SEVERAL]


class _Layers(nn.Module):
    def __call__(
        self, inputs: mx.array, cache: list[Any], input_embeddings: mx.array | None = None
    ) -> mx.array:
        h = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        for layer, own, window in zip(self.layers, cache, SEVERAL, strict=True):
            h = layer(h, create_attention_mask(h, own, window_size=window), cache=own)
        return self.norm(h)
