"""Stand-ins for mlx-lm's KV caches.

`LayerCache` is one layer's cache for a ragged batch. It passes new keys and values, and the
queries, to the step's `Attention` (see `ragged_attention`). `DenseCache` is one layer's cache for a
single request. It holds what mlx-lm's own cache would hold.
"""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models import mla
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.models.latents import LatentQueries

KeysValues = tuple[mx.array, mx.array]


class Attention(Protocol):
    """KV cache and attention of one step: each new token attends to its sequence up to itself."""

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(tokens, kv_heads, dim)`; once, before `attend`."""
        ...

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend with queries `(tokens, heads, key_dim)`; returns `(tokens, heads, value_dim)`.

        A layer that reads the keys of another layer passes that layer's index.
        """
        ...

    def attend_latents(
        self, layer: int, queries: LatentQueries, options: AttentionOptions
    ) -> mx.array:
        """Attend over stored entries of latents (see `models.latents`).

        This default absorbs the queries and attends to every token, which is right only if
        `queries.choice` would choose all of them.

        Returns:
            `(tokens, heads, value_dim)`.
        """
        return queries.expansion.project(self.attend(layer, queries.absorbed, options))

    def attend_blocks(
        self, layer: int, queries: mx.array, options: AttentionOptions, choice: BlockChoice
    ) -> mx.array:
        """Attend as `attend` does, to the blocks of tokens that `choice` chooses.

        This default attends to every token, which is right only if all blocks are chosen.
        """
        return self.attend(layer, queries, options)


class Window:
    """Attention mask of a sliding window: each token attends to the last `size` keys only."""

    def __init__(self, size: int) -> None:
        self.size = size


Mask = Window | BlockChoice
"""Attention masks that a `LayerCache` takes: both hide earlier tokens."""


def _window(mask: Mask | mx.array | None) -> int | None:
    return mask.size if isinstance(mask, Window) else None


class LayerCache:
    """Cache of one layer for one ragged step, in place of mlx-lm's.

    Attributes:
        layer: index of the layer.
        offset: position of each token `(tokens,)`, under the name that architectures read.
        attended: True once `attend` or `store_keys` was called.
    """

    def __init__(
        self, layer: int, offset: mx.array, attention: Attention, window: int | None
    ) -> None:
        self.layer = layer
        self.offset = offset
        self.attended = False
        self._attention = attention
        self._window = window
        self._stored: KeysValues | None = None
        self._module: mla.Running | None = None
        # sparse attention of mlx-lm makes one cache's keys depend on those of the indexer's cache
        self.keys = self.values = mx.array(0)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        if self._stored is not None or keys.shape[2] != 1 or values.shape[2] != 1:
            raise UnsupportedModelError("a layer stores more or fewer keys than one for each token")
        module = mla.running()
        if module is not None and not module.stored:
            return self._store_latents(module, keys, values)
        self._attention.store(self.layer, keys[:, :, 0], values[:, :, 0])
        self._stored = keys, values
        return self._stored

    def _store_latents(self, module: mla.Running, keys: mx.array, values: mx.array) -> KeysValues:
        """Store an MLA module's entries; return the keys and values that the module goes on with.

        A module that absorbs multiplies its rotary queries by the returned rotary keys and hands
        the products to attention as a mask. The identity matrix is returned as rotary keys, so
        that the mask consists of the rotary queries themselves.
        """
        entries = module.entry(keys, values)
        module.stored = True
        self._module, self.keys = module, entries
        self._attention.store(self.layer, entries, entries[..., : module.expansion.rank])
        if not module.expansion.absorbs:
            self._stored = keys, values
            return self._stored
        self._stored = keys, keys
        return keys, mx.eye(values.shape[-1], dtype=values.dtype)[None, None]

    def store_keys(self, keys: mx.array) -> None:
        """Store an indexer's keys `(tokens, 1, 1, dim)`; they are scored, never attended to."""
        self._attention.store(self.layer, keys[:, :, 0], keys[:, :, 0, :0])
        self.attended = True

    def keys_and_values(self) -> KeysValues:
        if self._stored is None:
            raise UnsupportedModelError("a layer reads keys before it stored them")
        return self._stored

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Window | None:
        size = window_size or self._window
        return Window(size) if size else None

    def holds(self, keys: mx.array, values: mx.array) -> bool:
        """Return True if `keys` and `values` are the same objects that this cache stores."""
        return self._stored is not None and self._stored[0] is keys and self._stored[1] is values

    def attend(
        self, queries: mx.array, options: AttentionOptions, mask: Mask | mx.array | None = None
    ) -> mx.array:
        """Attend with queries `(tokens, heads, 1, dim)`, each to the keys of its own sequence.

        The smaller of the windows of `mask` and of this layer applies. An array as mask
        is accepted only from an MLA module that absorbs: the array is its scaled rotary queries.

        Raises:
            UnsupportedModelError: for any other array as mask.
        """
        self.attended = True
        module = self._module
        if module is not None and module.expansion.absorbs and isinstance(mask, mx.array):
            queries = mx.concatenate([queries, mask / options.scale], axis=-1)
        elif mask is not None and not isinstance(mask, Mask):
            raise UnsupportedModelError("attention has a mask of its own")
        sizes = [size for size in (_window(mask), self._window) if size]
        if sizes:
            options = options._replace(window=min(sizes))
        by_head, attention = queries[:, :, 0], self._attention
        if module is not None:
            over = LatentQueries(by_head, module.expansion, module.index)
            out = attention.attend_latents(self.layer, over, options)
        elif isinstance(mask, BlockChoice):
            out = attention.attend_blocks(self.layer, by_head, options, mask)
        else:
            out = attention.attend(self.layer, by_head, options)
        # softmax may have run in a wider type, which must not spread through the model
        return out[:, :, None].astype(queries.dtype)


class DenseCache:
    """Cache of one layer for a single request, in place of mlx-lm's, in one forward pass.

    Args:
        prefix: keys and values `(1, heads, length, dim)` of the request's tokens before this pass;
            None if there are none. With a window, those of the last `window - 1` tokens suffice.
        window: size of the sliding window, as in mlx-lm's `RotatingKVCache`; None for full
            attention.
        offset: number of all the request's tokens before this pass.
    """

    def __init__(self, prefix: KeysValues | None, window: int | None, offset: int) -> None:
        self.offset = offset
        self.new: KeysValues | None = None
        self._window = window
        self._seen = offset if window is None else min(offset, window - 1)
        first = 0 if prefix is None else prefix[0].shape[2] - self._seen
        # architectures read these attributes by name
        self.keys = None if prefix is None else prefix[0][:, :, first:]
        self.values = None if prefix is None else prefix[1][:, :, first:]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        if self.new is not None:
            raise UnsupportedModelError("a layer stores keys and values twice in a pass")
        self.new = keys, values
        self.offset += keys.shape[2]
        self.keys = keys if self.keys is None else mx.concatenate([self.keys, keys], axis=2)
        self.values = values if self.values is None else mx.concatenate([self.values, values], 2)
        return self.keys, self.values

    def keys_and_values(self) -> KeysValues:
        if self.keys is None or self.values is None:
            raise UnsupportedModelError("a layer reads keys before it stored them")
        return self.keys, self.values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        window = window_size or self._window
        if window is not None and self._seen + length > window:
            return create_causal_mask(length, self._seen, window_size=window)
        if length == 1:
            return None
        return create_causal_mask(length, self._seen) if return_array else "causal"
