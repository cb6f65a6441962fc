"""Nesting of a model's KV caches, and the sliding window of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
from mlx_lm.models import cache as mlx_caches

from sgl_mlx.errors import UnsupportedModelError


class CacheLayout:
    """Nesting of the caches that a model of mlx-lm expects.

    Attributes:
        windows: size of each cache's sliding window, without nesting; None for full attention.

    Raises:
        UnsupportedModelError: when a layer keeps state other than keys and values.
    """

    def __init__(self, model: nn.Module) -> None:
        self.windows: list[int | None] = []
        self._widths: list[int | None] = []
        for cache in mlx_caches.make_prompt_cache(model):
            nested = type(cache) is mlx_caches.CacheList
            parts = cache.caches if nested else [cache]
            self._widths.append(len(parts) if nested else None)
            self.windows += [_window(part) for part in parts]

    def arrange(self, caches: Sequence[Any]) -> list[Any]:
        """Nest a flat list of caches as the model expects them."""
        flat = iter(caches)
        return [
            next(flat)
            if width is None
            else mlx_caches.CacheList(*(next(flat) for _ in range(width)))
            for width in self._widths
        ]


def _window(cache: Any) -> int | None:
    if type(cache) is mlx_caches.KVCache:
        return None
    if type(cache) is mlx_caches.RotatingKVCache and cache.keep == 0:
        return int(cache.max_size)
    raise UnsupportedModelError(
        f"a layer keeps {type(cache).__name__} state, which has no token-wise prefix to share"
    )
