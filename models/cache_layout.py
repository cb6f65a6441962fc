"""Layout of a model's caches: how they nest, and whether they hold KV or recurrent state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
from mlx_lm.models import cache as mlx_caches

from sgl_mlx.errors import UnsupportedModelError


class CacheLayout:
    """Kinds and nesting of the caches that a model of mlx-lm expects.

    `arrange` nests other caches in the same way.

    Attributes:
        windows: for each KV cache, in a flat list, the size of its sliding window; None for full
            attention.
        state_sizes: for each cache of recurrent state, in a flat list, its number of arrays.

    Raises:
        UnsupportedModelError: when a layer has a cache of another kind.
    """

    def __init__(self, model: nn.Module) -> None:
        self.windows: list[int | None] = []
        self.state_sizes: list[int] = []
        self._recurrent: list[bool] = []
        self._widths: list[int | None] = []
        for cache in mlx_caches.make_prompt_cache(model):
            nested = type(cache) is mlx_caches.CacheList
            parts = cache.caches if nested else [cache]
            self._widths.append(len(parts) if nested else None)
            for part in parts:
                self._add(part)

    def _add(self, cache: Any) -> None:
        recurrent = type(cache) is mlx_caches.ArraysCache
        self._recurrent.append(recurrent)
        if recurrent:
            self.state_sizes.append(len(cache.cache))
        else:
            self.windows.append(_window(cache))

    def arrange(self, caches: Sequence[Any], states: Sequence[Any] = ()) -> list[Any]:
        """Nest flat lists of caches as the model expects them.

        Args:
            caches: KV caches, one for each entry of `windows`.
            states: caches of recurrent state, one for each entry of `state_sizes`.
        """
        kept, recurrent = iter(caches), iter(states)
        flat = iter([next(recurrent if state else kept) for state in self._recurrent])
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
    if type(cache) is mlx_caches.ChunkedKVCache:
        return int(cache.chunk_size)  # a chunk begins within the window; the layer masks the rest
    raise UnsupportedModelError(
        f"a layer keeps {type(cache).__name__} state, which has no token-wise prefix to share"
    )
