"""Attention of a decode epoch: fixed rows, one new token each a step, for several steps.

Keys that rows share are gathered from the pool once; each row's own keys are copied once into a
padded buffer that grows by one column a step (the tail). So no step reads or writes the pool, and
a step can be submitted before the previous one has finished.

Buffers are `(rows, kv_heads, prefix + width, dim)`; the tail begins at column `prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models import cpu_math
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.decode_shared import NOWHERE, SharedBatch, padded
from sgl_mlx.runtime.attention.spans import MIN_SHARED, batches, shared_spans
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex, Slots
from sgl_mlx.runtime.scheduler.plan import Row


class Epoch:
    """Attention of fixed rows for up to `width` steps; `steps` counts those submitted so far."""

    def __init__(
        self, pool: KVPool, rows: Sequence[Row], width: int, min_shared: int = MIN_SHARED
    ) -> None:
        self.ids = [row.id for row in rows]
        self.rows = rows
        self.width = width
        self.steps = 0
        self._first_positions = mx.array([row.position for row in rows], mx.int32)
        spans, private = shared_spans(rows, min_shared)
        self._prefix = max(len(row.prefix) - p for row, p in zip(rows, private, strict=True))
        index = [
            padded(row.prefix[p:], self._prefix, 0) for row, p in zip(rows, private, strict=True)
        ]
        self._pad_bias, self._key_positions = self._describe_columns(private)
        self._shared = [SharedBatch(pool, rows, batch, width) for batch in batches(spans)]
        self.keys = [_buffer(x, index, width) for x in pool.keys]
        self.values = [_buffer(x, index, width) for x in pool.values]
        self._biases: dict[int, mx.array] = {}

    def begin_step(self) -> mx.array:
        """Begin the next step; returns the positions `(rows,)` of its tokens."""
        self._biases.clear()
        self.steps += 1
        positions = self._first_positions + (self.steps - 1)
        for batch in self._shared:
            batch.begin_step(positions)
        return positions

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """See `models.layer_cache.Attention`; takes one token a row."""
        column = self._prefix + self.steps - 1
        self.keys[layer][:, :, column] = keys
        self.values[layer][:, :, column] = values

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """See `models.layer_cache.Attention`; takes one token a row."""
        column = self._prefix + self.steps - 1
        rows, heads, dim = queries.shape
        k, v = self.keys[layer][:, :, : column + 1], self.values[layer][:, :, : column + 1]
        scale, window, softcap, sinks = options
        bias = self._bias(window)
        if bias is not None:
            bias = bias[:, None, None, : column + 1].astype(queries.dtype)
        small = rows * heads * column < cpu_math.WORTH_A_POLYNOMIAL
        if softcap is None and not self._shared and (small or not cpu_math.on_cpu()):
            return mx.fast.scaled_dot_product_attention(
                queries[:, :, None], k, v, scale=scale, mask=bias, sinks=sinks
            )[:, :, 0]
        kv_heads = k.shape[1]
        q = (queries * scale).reshape(rows, kv_heads, heads // kv_heads, dim)
        scores = at.soft_capped(q @ k.swapaxes(-1, -2), softcap)
        if bias is not None:
            scores = scores + bias
        peak = at.peaks(scores)
        weights = at.exp_minus(scores, peak)
        own = at.Partial(weights @ v, peak, at.sums(weights))
        total = at.Partial(*(x.swapaxes(0, 1) for x in own))
        grouped = q.swapaxes(0, 1)
        for batch in self._shared:
            total = at.merge(total, batch.attend(layer, grouped, window, softcap))
        return total.normalised(sinks)

    def tail(self) -> tuple[list[int], list[mx.array], list[mx.array]]:
        """Return slots, keys and values `(tokens, heads, dim)` by layer to write to the pool."""
        where = [
            (i * self.steps + step, slot)
            for i, row in enumerate(self.rows)
            for step, slot in enumerate(row.slots[: self.steps])
        ]
        picked = mx.array([i for i, _ in where], mx.int32)
        columns = slice(self._prefix, self._prefix + self.steps)

        def flat(buffer: mx.array) -> mx.array:
            tail = buffer[:, :, columns].swapaxes(1, 2)
            return tail.reshape(-1, *tail.shape[2:])[picked]

        keys, values = [flat(k) for k in self.keys], [flat(v) for v in self.values]
        return [slot for _, slot in where], keys, values

    def _describe_columns(self, private: Sequence[int]) -> tuple[mx.array | None, mx.array]:
        """Compute the bias that hides padding (None without padding) and each column's position."""
        positions, padded = [], False
        for row, start in zip(self.rows, private, strict=True):
            own = list(row.prefix_positions or range(len(row.prefix)))[start:]
            padding = self._prefix - len(own)
            padded = padded or padding > 0
            tail = range(row.position, row.position + self.width)
            positions.append([*own, *[NOWHERE] * padding, *tail])
        array = mx.array(positions, mx.int32)
        bias = mx.where(array == NOWHERE, at.MASKED, 0.0) if padded else None
        return bias, array

    def _bias(self, window: int | None) -> mx.array | None:
        if window is None:
            return self._pad_bias
        if window not in self._biases:
            now = self._first_positions + (self.steps - 1)
            seen = now[:, None] - self._key_positions < window
            self._biases[window] = mx.where(seen & (self._key_positions != NOWHERE), 0.0, at.MASKED)
        return self._biases[window]


def _buffer(slots: Slots, index: Sequence[Sequence[int]], width: int) -> mx.array:
    """Gather a prefix `(rows, heads, prefix, dim)`, with room for `width` more columns."""
    rows, prefix = len(index), len(index[0])
    _, heads, dim = slots.data.shape
    tail = mx.zeros((rows, heads, width, dim), slots.dtype)
    if prefix == 0:
        return tail
    gathered = slots.read(SlotIndex([slot for row in index for slot in row]))
    by_row = gathered.reshape(rows, prefix, heads, dim)
    return mx.concatenate([by_row.swapaxes(1, 2), tail], axis=2)
