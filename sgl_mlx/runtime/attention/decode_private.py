"""Private keys of a decode epoch's sequences (rows), in padded buffers.

A row's private keys are those that it shares with no other row of the epoch, a run of decode steps.
A batch holds rows whose private prefixes have similar lengths. Its buffers are `(rows, kv_heads,
capacity, dim)` for each layer. Padding comes before a shorter prefix, so that all prefixes end in
the same column and every step fills the next column. A sliding window is then a slice of columns.
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
"""Most columns that a buffer grows by at once, unless an epoch needs more; as in mlx-lm."""


class PrivateBatch:
    """Padded buffers with the private keys and values of some rows of an epoch.

    Args:
        layers: the layers that read these buffers.
        rows: all rows of the epoch.
        members: indices of the rows in this batch.
        starts: for each member, the index of the first prefix key to hold.
        width: number of steps to make room for.
        windowed: True if the layers have window slots of their own.
    """

    def __init__(
        self,
        pool: KVPool,
        layers: Sequence[int],
        rows: Sequence[Row],
        members: Sequence[int],
        starts: Sequence[int],
        width: int,
        windowed: bool = False,
    ) -> None:
        self._windowed = windowed
        self.members = members
        self._pick = None if len(members) == len(rows) else mx.array(list(members), mx.int32)
        self._rows = [rows[i] for i in members]
        self._starts = starts
        lengths = [len(row.prefix) - start for row, start in zip(self._rows, starts, strict=True)]
        self.columns = self._prefix = max(lengths)
        self.padding = [self.columns - length for length in lengths]
        self._first = self._prefix
        self._counts = all(row.prefix_positions is None for row in self._rows)
        self._key_positions: mx.array | None = None
        self._masks: dict[tuple[int | None, mx.Dtype], tuple[int, mx.array | None]] = {}
        index = self._index()
        self.keys = {i: _buffer(pool.keys[i], index, len(members), width) for i in layers}
        shapes = {i: pool.layers[i] for i in layers}
        self._in_keys = {i: x.value_dim for i, x in shapes.items() if x.values_in_keys}
        beside = [i for i in layers if i not in self._in_keys]
        self.values = {i: _buffer(pool.values[i], index, len(members), width) for i in beside}

    def go_on(self, width: int) -> None:
        """Begin another epoch with room for `width` steps; buffers that are too small grow."""
        self._first = self.columns
        buffer = next(iter(self.keys.values()))
        if self.columns + width > buffer.shape[2]:
            more = max(width, min(_STEP, self.columns // 4))
            for buffers in (self.keys, self.values):
                for layer, old in buffers.items():
                    buffers[layer] = _with_room(old[:, :, : self.columns], more)

    def begin_step(self, positions: mx.array) -> None:
        """Begin a step: open a column for new tokens, whose `positions (all rows,)` are given."""
        self.columns += 1
        self._positions = self.pick(positions)
        self._masks.clear()

    def pick(self, x: mx.array) -> mx.array:
        """Return the members' part of an array `(all rows, …)`."""
        return x if self._pick is None else x[self._pick]

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Write the members' new keys and values to the last column.

        The arrays are `(all rows, kv_heads, dim)`.
        """
        self.keys[layer][:, :, self.columns - 1] = self.pick(keys)
        if layer in self.values:
            self.values[layer][:, :, self.columns - 1] = self.pick(values)

    def fuses(self, heads: int) -> bool:
        """Return True if MLX's fused attention is faster than `attend`.

        That is so on a GPU, and on a CPU for little work.
        """
        size = len(self.members) * heads * self.columns
        return not cpu_math.on_cpu() or size < cpu_math.WORTH_A_POLYNOMIAL

    def fused(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend the members' queries by MLX's fused attention.

        Args:
            queries: `(all rows, heads, dim)`, not scaled.

        Returns:
            `(members, heads, value_dim)`.
        """
        q = self.pick(queries)
        keys, values, bias = self.seen(layer, options.window, q.dtype)
        mask = None if bias is None else bias[:, None, None]
        return mx.fast.scaled_dot_product_attention(
            q[:, :, None], keys, values, scale=options.scale, mask=mask, sinks=options.sinks
        )[:, :, 0]

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> at.Partial:
        """Attend the members' queries in plain MLX.

        Args:
            queries: `(all rows, kv_heads, group, dim)`, already scaled.

        Returns:
            A `softmax.Partial` whose arrays are `(kv_heads, members, group, …)`.
        """
        q = self.pick(queries)
        keys, values, bias = self.seen(layer, options.window, q.dtype)
        scores = at.soft_capped(q @ keys.swapaxes(-1, -2), options.softcap)
        if bias is not None:
            scores = scores + bias[:, None, None]
        peak = at.peaks(scores)
        weights = at.exp_minus(scores, peak)
        own = weights @ values, peak, at.sums(weights)
        return at.Partial(*(x.swapaxes(0, 1) for x in own))

    def tail(self, layer: int, steps: int) -> tuple[mx.array, mx.array]:
        """Return the keys and values `(members * steps, kv_heads, dim)` of this epoch's steps."""
        columns = slice(self._first, self._first + steps)
        taken = (x[:, :, columns] for x in self._both(layer))
        keys, values = (x.swapaxes(1, 2) for x in taken)
        return keys.flatten(0, 1), values.flatten(0, 1)

    def _index(self) -> SlotIndex | None:
        if self._prefix == 0:
            return None
        rows = zip(self._rows, self._starts, strict=True)
        own = [row.keys(self._windowed)[start:] for row, start in rows]
        if len(own) == 1:
            return SlotIndex(own[0])
        padded = (([0] * n, slots) for n, slots in zip(self.padding, own, strict=True))
        return SlotIndex(list(chain.from_iterable(chain.from_iterable(padded))))

    def seen(
        self, layer: int, window: int | None, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Return the keys and values that members may see inside `window`; None means all.

        Returns:
            Keys and values `(members, kv_heads, keys, dim)`, and the mask `(members, keys)`: 0 for
            a key that the member sees, else `MASKED`. The mask is None if every member sees every
            key.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._mask(window, dtype)
        first, bias = self._masks[window, dtype]
        columns = slice(first, self.columns)
        keys, values = (x[:, :, columns] for x in self._both(layer))
        return keys, values, bias

    def _both(self, layer: int) -> tuple[mx.array, mx.array]:
        keys = self.keys[layer]
        if layer in self._in_keys:
            return keys, keys[..., : self._in_keys[layer]]
        return keys, self.values[layer]

    def _mask(self, window: int | None, dtype: mx.Dtype) -> tuple[int, mx.array | None]:
        if not self._counts:
            return 0, self._mask_by_position(window).astype(dtype)
        first = 0 if window is None else max(0, self.columns - window)
        if first >= max(self.padding):
            return first, None
        seen = mx.arange(first, self.columns) >= mx.array(self.padding)[:, None]
        return first, mx.where(seen, 0.0, at.MASKED).astype(dtype)

    def _mask_by_position(self, window: int | None) -> mx.array:
        if self._key_positions is None:
            own = [
                (row.prefix_positions or range(len(row.prefix)))[start:]
                for row, start in zip(self._rows, self._starts, strict=True)
            ]
            padded = [[NOWHERE] * n + list(p) for n, p in zip(self.padding, own, strict=True)]
            self._key_positions = mx.array(padded, mx.int32).reshape(len(own), -1)
        first_steps = mx.array([[row.position] for row in self._rows], mx.int32)
        new = first_steps + mx.arange(self.columns - self._prefix)
        keys = mx.concatenate([self._key_positions, new], axis=1)
        seen = keys != NOWHERE
        if window is not None:
            seen = seen & (self._positions[:, None] - keys < window)
        return mx.where(seen, 0.0, at.MASKED)


def _buffer(slots: Slots, index: SlotIndex | None, rows: int, width: int) -> mx.array:
    """Copy prefixes from the pool to `(rows, heads, prefix + width, dim)`.

    `index` lists the slots, padding included; None if there is no prefix key.
    """
    _, heads, dim = slots.data.shape
    if index is None:
        return mx.zeros((rows, heads, width, dim), slots.dtype)
    gathered = slots.read(index).reshape(rows, -1, heads, dim)
    return _with_room(gathered.swapaxes(1, 2), width)


def _with_room(buffer: mx.array, columns: int) -> mx.array:
    rows, heads, _, dim = buffer.shape
    return mx.concatenate([buffer, mx.zeros((rows, heads, columns, dim), buffer.dtype)], axis=2)
