"""Attention of an `Extend` step: prefill chunks over prefixes in the pool, and decode tokens.

Single tokens are attended as an epoch of one step, chunks by extend attention; `select`
says which implementation of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.scheduler.plan import Row


class ExtendStep:
    """The new tokens of some rows, one after another, single tokens first (`spans.arrange`).

    After the forward pass `keys[layer]` and `values[layer]` hold the new KV
    `(tokens, heads, dim)`; `slots` says where it goes.
    """

    def __init__(self, paths: AttentionPaths, rows: Sequence[Row]) -> None:
        self._layers = len(paths.pool.layers)
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}
        self.slots = [slot for row in rows for slot in row.slots[: len(row.tokens)]]
        self.tokens = mx.array([t for row in rows for t in row.tokens], mx.int32)
        self.positions = mx.array(
            [p for row in rows for p in range(row.position, row.position + len(row.tokens))],
            mx.int32,
        )
        self._singles = sum(len(row.tokens) == 1 for row in rows)
        self._decoding = paths.epoch(rows[: self._singles], 1) if self._singles else None
        if self._decoding is not None:
            self._decoding.begin_step()
        chunks = rows[self._singles :]
        self._chunks = paths.chunks(chunks) if chunks else None

    @property
    def keys(self) -> list[mx.array]:
        return [self._stored[layer][0] for layer in range(self._layers)]

    @property
    def values(self) -> list[mx.array]:
        return [self._stored[layer][1] for layer in range(self._layers)]

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """See `models.layer_cache.Attention`."""
        self._stored[layer] = keys, values
        n = self._singles
        if self._decoding is not None:
            self._decoding.store(layer, keys[:n], values[:n])
        if self._chunks is not None:
            self._chunks.store(layer, keys[n:], values[n:])

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """See `models.layer_cache.Attention`."""
        n = self._singles
        outs = []
        if self._decoding is not None:
            outs.append(self._decoding.attend(layer, queries[:n], options))
        if self._chunks is not None:
            outs.append(self._chunks.attend(layer, queries[n:], options))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)
