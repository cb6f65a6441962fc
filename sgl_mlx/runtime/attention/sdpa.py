"""Attention of prefill chunks by MLX's fused kernel, over keys gathered from the KV pool.

Used on a GPU where our own kernels are not faster: for long chunks, and for shapes that our kernels
do not support. The fused kernel is called once for each sequence. A prefix in consecutive slots is
read as one slice of the pool. A layer with a sliding window reads only the keys inside the
first new token's window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.runtime.attention.spans import seen_from
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row


class SdpaChunks:
    """Attention of sequences with several new tokens each; same interface as `prefill.Chunks`.

    A soft-cap of the scores is not supported.
    """

    def __init__(self, pool: KVPool, rows: Sequence[Row]) -> None:
        self._pool = pool
        self._rows = rows
        self._seen: dict[int | None, list[_Keys]] = {}
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row.tokens))
        self._ranges = list(pairwise(starts))
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(tokens, kv_heads, dim)`, before `attend`."""
        self._stored[layer] = keys, values

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(tokens, heads, dim)`; returns `(tokens, heads, value_dim)`."""
        scale, window, softcap, sinks = options
        assert softcap is None, "MLX's fused attention has no soft-cap; `select` takes `Chunks`"
        widest = self._pool.layers[layer].window
        if widest not in self._seen:
            own = layer in self._pool.windowed
            self._seen[widest] = [_Keys(row, widest, own) for row in self._rows]
        outs = []
        for row, (first, last) in zip(self._seen[widest], self._ranges, strict=True):
            keys, values = (x[first:last] for x in self._stored[layer])
            if row.prefix is not None:
                k, v = self._pool.gather(layer, row.prefix)
                keys, values = mx.concatenate([k, keys]), mx.concatenate([v, values])
            q, k, v = (x.swapaxes(0, 1)[None] for x in (queries[first:last], keys, values))
            out = mx.fast.scaled_dot_product_attention(
                q, k, v, scale=scale, mask=row.mask(window), sinks=sinks
            )
            outs.append(out[0].swapaxes(0, 1))
        return mx.concatenate(outs)


class _Keys:
    """One sequence's prefix slots inside the `widest` window, and its attention masks.

    With `windowed`, the slots are those of layers that have window slots of their own.
    `prefix` is None if no prefix key is in the window. The masks are cached by window.
    """

    def __init__(self, row: Row, widest: int | None, windowed: bool) -> None:
        start = seen_from(row, 0, len(row.prefix), row.position, widest)
        slots = row.keys(windowed)[start:]
        self.prefix = SlotIndex(slots) if slots else None
        own = range(row.position, row.position + len(row.tokens))
        self._tokens = len(own)
        self._keys = [*(row.prefix_positions or range(len(row.prefix)))[start:], *own]
        self._masks: dict[int, mx.array] = {}

    def mask(self, window: int | None) -> mx.array | str:
        """Return the boolean mask `(tokens, keys)` of the keys that each token sees.

        Returns "causal" if the window hides none of the earlier keys.
        """
        if window is None or self._keys[-1] - min(self._keys) < window:
            return "causal"
        if window not in self._masks:
            keys = mx.array(self._keys, mx.int32)
            distance = keys[-self._tokens :, None] - keys
            order = mx.arange(len(self._keys))
            before = order <= order[-self._tokens :, None]
            self._masks[window] = before & (distance < window)
        return self._masks[window]
