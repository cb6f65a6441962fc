"""Runs mlx-lm's architectures unchanged on the runtime's KV.

In mlx-lm a layer's attention asks its cache for `offset`, hands new keys and values to
`cache.update_and_fetch`, and calls the module's global `scaled_dot_product_attention` with that
cache. `LayerCache` stands in for the cache, and the global is rebound once to a function that
goes to `step.attend` when the cache is ours. Tokens are fed as a batch `(tokens, 1)`: each is a
row of its own at its own position, so requests of any length mix without padding.

Architectures whose attention does not go that way run one request at a time on gathered KV
(`DenseCache`): correct, only slower. Which one is which is `architectures.json`, made and checked
by the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as mlx_caches
from mlx_lm.models.base import create_causal_mask

from sgl_mlx.errors import UnsupportedModelError

_ATTENTION = "scaled_dot_product_attention"
_TRUNKS = ("model", "transformer", "backbone", "language_model")


class LayerShape(NamedTuple):
    """KV of one layer: heads, key and value width, and its sliding window if it has one."""

    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None


class Attention(Protocol):
    """Attention of the new tokens over everything before them, layer by layer."""

    def attend(
        self,
        layer: int,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """`(tokens, heads, key_dim)` queries to `(tokens, heads, value_dim)`."""
        ...


class Window:
    """Stands for an attention mask: keys further back than `size - 1` are not seen."""

    def __init__(self, size: int) -> None:
        self.size = size


class LayerCache:
    """What mlx-lm takes for the KV cache of one layer of a ragged batch."""

    def __init__(
        self, layer: int, offset: mx.array, attention: Attention, window: int | None
    ) -> None:
        self.layer = layer
        self.offset = offset
        self.attention = attention
        self.window = window

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Window | None:
        size = window_size or self.window
        return Window(size) if size else None


class DenseCache:
    """What mlx-lm takes for the KV cache of one layer of one request.

    Holds the gathered keys and values `(1, heads, length, dim)` of the prefix, all of them also
    for windowed layers; remembers the new ones for the pool.
    """

    def __init__(self, prefix: tuple[mx.array, mx.array] | None, window: int | None) -> None:
        self.prefix = prefix
        self.offset = 0 if prefix is None else int(prefix[0].shape[2])
        self.window = window
        self.new: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.new = (keys, values)
        if self.prefix is None:
            return keys, values
        return (
            mx.concatenate([self.prefix[0], keys], axis=2),
            mx.concatenate([self.prefix[1], values], axis=2),
        )

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        window = window_size or self.window
        if window is not None and self.offset + length > window:
            return create_causal_mask(length, self.offset, window_size=window)
        if length == 1:
            return None
        return create_causal_mask(length, self.offset) if return_array else "causal"


class Adapter:
    """A loaded model behind the two calls the runner makes.

    Args:
        model: of `mlx_lm.models`.
        ragged: False runs one request at a time.

    Raises:
        UnsupportedModelError: when a layer keeps state that is not keys and values.
    """

    def __init__(self, model: nn.Module, ragged: bool = True) -> None:
        self.model = model
        self.ragged = ragged
        self._selection = _Selection()
        self._trunk_selects = _select_in_trunk(model, self._selection)
        self._windows = _layer_windows(model)
        self.layers, self.dtype, self.vocabulary = self._probe()
        if ragged:
            _rebind_attention(model)

    def forward(
        self, tokens: mx.array, positions: mx.array, attention: Attention, rows: mx.array
    ) -> mx.array:
        """Logits `(len(rows), vocabulary)` after the chosen tokens of a ragged batch.

        Args:
            tokens, positions: `(tokens,)`.
            rows: indices of the tokens whose logits are wanted.
        """
        caches = [
            LayerCache(i, positions, attention, window) for i, window in enumerate(self._windows)
        ]
        return self._logits(tokens[:, None], caches, rows)[:, 0]

    def forward_dense(
        self,
        tokens: mx.array,
        prefix: Sequence[tuple[mx.array, mx.array]] | None,
        rows: mx.array,
    ) -> tuple[mx.array, list[tuple[mx.array, mx.array]]]:
        """One request alone.

        Args:
            tokens: `(tokens,)`.
            prefix: keys and values `(length, heads, dim)` of each layer.
            rows: indices of the tokens whose logits are wanted.

        Returns:
            Logits `(len(rows), vocabulary)`; new keys and values `(tokens, heads, dim)` by layer.
        """
        caches = [
            DenseCache(None if prefix is None else _as_batch(*prefix[i]), window)
            for i, window in enumerate(self._windows)
        ]
        logits = self._logits(tokens[None], caches, rows, axis=1)[0]
        return logits, [_as_rows(cache) for cache in caches]

    def _logits(
        self, tokens: mx.array, caches: Sequence[Any], rows: mx.array, axis: int = 0
    ) -> mx.array:
        self._selection.choose(rows, axis)
        try:
            logits = self.model(tokens, cache=list(caches))
        finally:
            self._selection.choose(None)
        return logits if self._trunk_selects else mx.take(logits, rows, axis=axis)

    def _probe(self) -> tuple[list[LayerShape], mx.Dtype, int]:
        """Shapes of every layer's KV and of the logits, by tracing one token without computing."""
        one = mx.zeros((1,), mx.int32)
        logits, kv = self.forward_dense(one, None, one)
        shapes = [
            LayerShape(k.shape[1], k.shape[2], v.shape[2], window)
            for (k, v), window in zip(kv, self._windows, strict=True)
        ]
        return shapes, kv[0][0].dtype, int(logits.shape[-1])


class _Selection:
    """Which rows of the trunk's output go on to the vocabulary."""

    def __init__(self) -> None:
        self.rows: mx.array | None = None
        self.axis = 0

    def choose(self, rows: mx.array | None, axis: int = 0) -> None:
        self.rows, self.axis = rows, axis

    def __call__(self, hidden: mx.array) -> mx.array:
        return hidden if self.rows is None else mx.take(hidden, self.rows, axis=self.axis)


def _select_in_trunk(model: nn.Module, selection: _Selection) -> bool:
    """Make the trunk return the chosen rows only, so that no logits are computed for the rest.

    The trunk becomes an instance of a subclass of its own class: parameters, attributes and the
    way the model calls it stay as they are.
    """
    target = model
    while (inner := _inner_trunk(target)) is not None:
        target = inner
    if target is model:
        return False
    original = type(target)

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return selection(original.__call__(self, *args, **kwargs))

    target.__class__ = type(original.__name__, (original,), {"__call__": __call__})
    return True


def _inner_trunk(module: nn.Module) -> nn.Module | None:
    inner = (getattr(module, name, None) for name in _TRUNKS)
    return next((m for m in inner if isinstance(m, nn.Module)), None)


def _layer_windows(model: nn.Module) -> list[int | None]:
    windows: list[int | None] = []
    for cache in mlx_caches.make_prompt_cache(model):
        if type(cache) is mlx_caches.KVCache:
            windows.append(None)
        elif type(cache) is mlx_caches.RotatingKVCache and cache.keep == 0:
            windows.append(cache.max_size)
        else:
            raise UnsupportedModelError(
                f"architecture {_model_type(model)!r} keeps {type(cache).__name__} state, "
                "which has no token-wise prefix to share; only key-value layers can run"
            )
    return windows


def _model_type(model: nn.Module) -> str:
    return str(getattr(model, "model_type", type(model).__module__.rpartition(".")[2]))


def _rebind_attention(model: nn.Module) -> None:
    modules = {type(m).__module__ for m in model.modules()}
    modules |= {base.__module__ for m in model.modules() for base in type(m).__mro__}
    for name in modules:
        module = sys.modules.get(name)
        if name.startswith("mlx_lm.models.") and hasattr(module, _ATTENTION):
            assert module is not None
            _rebind(module)


def _rebind(module: ModuleType) -> None:
    original = getattr(module, _ATTENTION)
    if getattr(original, "for_layer_cache", False):
        return

    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any = None,
        scale: float = 1.0,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if not isinstance(cache, LayerCache):
            return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
        window = mask.size if isinstance(mask, Window) else None
        if mask is not None and window is None:
            raise UnsupportedModelError(f"{module.__name__} makes attention masks of its own")
        out = cache.attention.attend(
            cache.layer, queries[:, :, 0], keys[:, :, 0], values[:, :, 0], scale, window, sinks
        )
        return out[:, :, None]

    attend.for_layer_cache = True  # type: ignore[attr-defined]
    setattr(module, _ATTENTION, attend)


def _as_batch(keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    return keys.swapaxes(0, 1)[None], values.swapaxes(0, 1)[None]


def _as_rows(cache: DenseCache) -> tuple[mx.array, mx.array]:
    if cache.new is None:
        raise UnsupportedModelError("a layer of this architecture never stored keys and values")
    keys, values = cache.new
    return keys[0].swapaxes(0, 1), values[0].swapaxes(0, 1)
