"""Keys that one row of a decode epoch has for itself, with those of rows of like length.

A batch's buffers are `(rows, kv_heads, capacity, dim)` by layer. Each row's prefix ends in the same
column, so padding stands before it; every step fills the next column. A window is then a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models import cpu_math
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.decode_shared import NOWHERE
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex, Slots
from sgl_mlx.runtime.scheduler.plan import Row

_STEP = 256
"""Most columns that a buffer grows by at once, as mlx-lm's caches do."""


class PrivateBatch:
    """Rows in one padded buffer.

    Args:
        layers: the layers that read it.
        rows: all rows of the epoch.
        members: the rows that it holds, by index.
        starts: for each member, the first key of its prefix that belongs here.
        width: steps to make room for.
    """

    def __init__(
        self,
        pool: KVPool,
        layers: Sequence[int],
        rows: Sequence[Row],
        members: Sequence[int],
        starts: Sequence[int],
        width: int,
    ) -> None:
        self.members = members
        self._pick = None if len(members) == len(rows) else mx.array(list(members), mx.int32)
        self._rows = [rows[i] for i in members]
        self._starts = starts
        lengths = [len(row.prefix) - start for row, start in zip(self._rows, starts, strict=True)]
        self.columns = self._prefix = max(lengths)
        self._padding = [self.columns - length for length in lengths]
        self._first = self._prefix
        self._counts = all(row.prefix_positions is None for row in self._rows)
        self._key_positions: mx.array | None = None
        self._masks: dict[tuple[int | None, mx.Dtype], tuple[int, mx.array | None]] = {}
        index = self._index()
        self.keys = {i: _buffer(pool.keys[i], index, len(members), width) for i in layers}
        self.values = {i: _buffer(pool.values[i], index, len(members), width) for i in layers}

    def go_on(self, width: int) -> None:
        """Make room for `width` more steps, and for a few times as many if buffers must grow."""
        self._first = self.columns
        buffer = next(iter(self.keys.values()))
        if self.columns + width > buffer.shape[2]:
            more = max(width, min(_STEP, self.columns // 4))
            for buffers in (self.keys, self.values):
                for layer, old in buffers.items():
                    buffers[layer] = _with_room(old[:, :, : self.columns], more)

    def begin_step(self, positions: mx.array) -> None:
        """Open the next column; `positions (all rows,)` are those of its tokens."""
        self.columns += 1
        self._positions = self.pick(positions)
        self._masks.clear()

    def pick(self, x: mx.array) -> mx.array:
        """Take the members' rows of `x (all rows, …)`."""
        return x if self._pick is None else x[self._pick]

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Put one token of every row of the epoch `(all rows, kv_heads, dim)` into the column."""
        self.keys[layer][:, :, self.columns - 1] = self.pick(keys)
        self.values[layer][:, :, self.columns - 1] = self.pick(values)

    def fuses(self, heads: int) -> bool:
        """True if MLX's fused attention is the faster one here."""
        size = len(self.members) * heads * self.columns
        return not cpu_math.on_cpu() or size < cpu_math.WORTH_A_POLYNOMIAL

    def fused(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend the members of `queries (all rows, heads, dim)` by MLX's fused attention."""
        q = self.pick(queries)
        keys, values, bias = self._seen(layer, options.window, q.dtype)
        mask = None if bias is None else bias[:, None, None]
        return mx.fast.scaled_dot_product_attention(
            q[:, :, None], keys, values, scale=options.scale, mask=mask, sinks=options.sinks
        )[:, :, 0]

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> at.Partial:
        """Attend the members of scaled `queries (all rows, kv_heads, group, dim)`.

        Returns:
            A partial in the layout of `softmax`: `(kv_heads, members, group, …)`.
        """
        q = self.pick(queries)
        keys, values, bias = self._seen(layer, options.window, q.dtype)
        scores = at.soft_capped(q @ keys.swapaxes(-1, -2), options.softcap)
        if bias is not None:
            scores = scores + bias[:, None, None]
        peak = at.peaks(scores)
        weights = at.exp_minus(scores, peak)
        own = weights @ values, peak, at.sums(weights)
        return at.Partial(*(x.swapaxes(0, 1) for x in own))

    def tail(self, layer: int, steps: int) -> tuple[mx.array, mx.array]:
        """Return the keys and values `(members * steps, kv_heads, dim)` of the steps taken."""
        columns = slice(self._first, self._first + steps)
        taken = (x[layer][:, :, columns] for x in (self.keys, self.values))
        keys, values = (x.swapaxes(1, 2) for x in taken)
        return keys.reshape(-1, *keys.shape[2:]), values.reshape(-1, *values.shape[2:])

    def _index(self) -> SlotIndex | None:
        if self._prefix == 0:
            return None
        own = [row.prefix[start:] for row, start in zip(self._rows, self._starts, strict=True)]
        if len(own) == 1:
            return SlotIndex(own[0])
        padded = (([0] * n, slots) for n, slots in zip(self._padding, own, strict=True))
        return SlotIndex(list(chain.from_iterable(chain.from_iterable(padded))))

    def _seen(
        self, layer: int, window: int | None, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Slice keys and values to what some row sees; the bias `(members, keys)` hides the rest.

        It is None if every row sees all of them.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._mask(window, dtype)
        first, bias = self._masks[window, dtype]
        columns = slice(first, self.columns)
        return self.keys[layer][:, :, columns], self.values[layer][:, :, columns], bias

    def _mask(self, window: int | None, dtype: mx.Dtype) -> tuple[int, mx.array | None]:
        if not self._counts:
            return 0, self._mask_by_position(window).astype(dtype)
        first = 0 if window is None else max(0, self.columns - window)
        if first >= max(self._padding):
            return first, None
        seen = mx.arange(first, self.columns) >= mx.array(self._padding)[:, None]
        return first, mx.where(seen, 0.0, at.MASKED).astype(dtype)

    def _mask_by_position(self, window: int | None) -> mx.array:
        if self._key_positions is None:
            own = [
                (row.prefix_positions or range(len(row.prefix)))[start:]
                for row, start in zip(self._rows, self._starts, strict=True)
            ]
            padded = [[NOWHERE] * n + list(p) for n, p in zip(self._padding, own, strict=True)]
            self._key_positions = mx.array(padded, mx.int32).reshape(len(own), -1)
        first_steps = mx.array([[row.position] for row in self._rows], mx.int32)
        new = first_steps + mx.arange(self.columns - self._prefix)
        keys = mx.concatenate([self._key_positions, new], axis=1)
        seen = keys != NOWHERE
        if window is not None:
            seen = seen & (self._positions[:, None] - keys < window)
        return mx.where(seen, 0.0, at.MASKED)


def _buffer(slots: Slots, index: SlotIndex | None, rows: int, width: int) -> mx.array:
    """Gather prefixes `(rows, heads, prefix, dim)`, with room for `width` more columns."""
    _, heads, dim = slots.data.shape
    if index is None:
        return mx.zeros((rows, heads, width, dim), slots.dtype)
    gathered = slots.read(index).reshape(rows, -1, heads, dim)
    return _with_room(gathered.swapaxes(1, 2), width)


def _with_room(buffer: mx.array, columns: int) -> mx.array:
    rows, heads, _, dim = buffer.shape
    return mx.concatenate([buffer, mx.zeros((rows, heads, columns, dim), buffer.dtype)], axis=2)
