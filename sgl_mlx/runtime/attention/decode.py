"""Attention of a decode epoch in plain MLX: several steps of the same sequences (rows).

Each step adds one token to every row. Keys that rows share are gathered from the KV pool once. Each
row's own keys are copied once into a padded buffer, and every step appends one column (the tail).
So no step reads or writes the pool, and a step can be submitted before the previous one has
finished. Layers with a sliding window gather only the keys inside the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.layer_cache import Attention
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.decode_private import PrivateBatch
from sgl_mlx.runtime.attention.decode_shared import SharedBatch
from sgl_mlx.runtime.attention.spans import (
    MIN_SHARED,
    batches,
    by_length,
    clipped,
    seen_from,
    shared_spans,
    windowed,
)
from sgl_mlx.runtime.pool.kv import KVPool, NewKV
from sgl_mlx.runtime.scheduler.plan import Row

_MOST_STALE = 256
"""The most keys outside a layer's window that a buffer keeps from one epoch to the next."""


class Epoch(Attention):
    """Attention of the same rows (sequences) for up to `width` decode steps.

    Args:
        rows: sorted by their prefix slots.
        min_shared: fewest keys of a shared prefix that is attended once for all its rows.

    Attributes:
        steps: number of steps begun so far.
    """

    def __init__(
        self, pool: KVPool, rows: Sequence[Row], width: int, min_shared: int = MIN_SHARED
    ) -> None:
        self.ids = [row.id for row in rows]
        self.steps = 0
        self._pool = pool
        self._min_shared = min_shared
        self._set_rows(rows, width)
        self._by_window = {
            window: _Layers(pool, rows, min_shared, window, width)
            for window in {x.window for x in pool.layers}
        }

    def go_on(self, rows: Sequence[Row], width: int) -> bool:
        """Begin the next epoch in the same buffers, if `rows` are this epoch's rows, continued.

        Call this method after the KV of the last steps was written to the pool.

        Returns:
            True if the next epoch has begun. False, with nothing changed, if `rows` are other
            sequences, if new keys are in other slots than this epoch's rows planned, or if a row
            has explicit prefix positions.
        """
        if [row.id for row in rows] != self.ids or not all(
            _follows(row, before, self.steps) for row, before in zip(rows, self.rows, strict=True)
        ):
            return False
        self.steps = 0
        self._set_rows(rows, width)
        for window, layers in self._by_window.items():
            if layers.stale:
                self._by_window[window] = _Layers(self._pool, rows, self._min_shared, window, width)
            else:
                layers.go_on(width)
        return True

    def begin_step(self) -> mx.array:
        """Begin the next step; returns the positions `(rows,)` of its new tokens."""
        positions = self._first_positions + self.steps
        self.steps += 1
        for layers in self._by_window.values():
            layers.begin_step(positions)
        return positions

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(rows, kv_heads, dim)`, one token per row."""
        for batch in self._layers(layer).private:
            batch.store(layer, keys, values)

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(rows, heads, dim)`, one token per row.

        Returns `(rows, heads, value_dim)`.
        """
        return self._layers(layer).attend(layer, queries, options)

    def in_batches(self, layer: int, attend: Callable[[PrivateBatch], mx.array]) -> mx.array:
        """Compute a layer's attention batch by batch of rows, in epochs without shared prefixes.

        Args:
            attend: computes the attention of a batch; returns `(rows of the batch, …)`.

        Returns:
            The joined results `(rows, …)`, in the order of the rows.
        """
        return self._layers(layer).in_batches(attend)

    def arrays(self) -> list[mx.array]:
        """Return the arrays that steps write to: the private buffers of every layer."""
        private = (batch for x in self._by_window.values() for batch in x.private)
        return [x for b in private for kv in (b.keys, b.values) for x in kv.values()]

    def tail(self) -> NewKV:
        """Return the KV of the steps so far, to be written to the pool."""
        slots = [slot for row in self.rows for slot in row.slots[: self.steps]]
        window: list[int] = []
        if self._pool.windowed:
            window = [slot for row in self.rows for slot in row.window_slots()[: self.steps]]
        picked = {w: x.order_of_tail(self.rows, self.steps) for w, x in self._by_window.items()}
        keys: list[mx.array] = []
        values: list[mx.array] = []
        for layer, shape in enumerate(self._pool.layers):
            parts = [batch.tail(layer, self.steps) for batch in self._layers(layer).private]
            for into, found in zip((keys, values), zip(*parts, strict=True), strict=True):
                into.append(mx.concatenate(list(found))[picked[shape.window]])
        return NewKV(slots, keys, values, window)

    def _layers(self, layer: int) -> _Layers:
        return self._by_window[self._pool.layers[layer].window]

    def _set_rows(self, rows: Sequence[Row], width: int) -> None:
        self.rows = rows
        self.width = width
        self._first_positions = mx.array([row.position for row in rows], mx.int32)


class _Layers:
    """Buffers of an epoch for all layers with the same window; `window` is None for no window."""

    def __init__(
        self, pool: KVPool, rows: Sequence[Row], min_shared: int, window: int | None, width: int
    ) -> None:
        layers = [i for i, x in enumerate(pool.layers) if x.window == window]
        spans, private = shared_spans(rows, min_shared)
        own = not pool.windowed.isdisjoint(layers)
        if own:
            spans = [windowed(span, rows) for span in spans]
        starts = [
            seen_from(row, start, len(row.prefix), row.position, window)
            for row, start in zip(rows, private, strict=True)
        ]
        lengths = [len(row.prefix) - start for row, start in zip(rows, starts, strict=True)]
        groups = by_length(lengths)
        self._window = window
        self.private = [
            PrivateBatch(pool, layers, rows, group, [starts[i] for i in group], width, own)
            for group in groups
        ]
        seen = [span for span in (clipped(s, rows, window) for s in spans) if span.slots]
        self._shared = [SharedBatch(pool, layers, rows, batch) for batch in batches(seen)]
        order = [i for group in groups for i in group]
        self._places = None
        if len(groups) > 1:
            self._places = mx.array(sorted(range(len(rows)), key=order.__getitem__), mx.int32)

    @property
    def stale(self) -> bool:
        """True if buffers hold over `_MOST_STALE` columns that are outside the window."""
        columns = max(batch.columns for batch in self.private)
        return self._window is not None and columns > self._window + _MOST_STALE

    def go_on(self, width: int) -> None:
        for batch in self.private:
            batch.go_on(width)

    def begin_step(self, positions: mx.array) -> None:
        for private in self.private:
            private.begin_step(positions)
        for shared in self._shared:
            shared.begin_step(positions)

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(rows, heads, dim)`; returns `(rows, heads, value_dim)`."""
        rows, heads, dim = queries.shape
        plain = options.softcap is None and not self._shared
        if plain and all(batch.fuses(heads) for batch in self.private):
            return self.in_batches(lambda batch: batch.fused(layer, queries, options))
        kv_heads = self.private[0].keys[layer].shape[1]
        q = (queries * options.scale).reshape(rows, kv_heads, heads // kv_heads, dim)
        total = at.concatenate([batch.attend(layer, q, options) for batch in self.private])
        if self._places is not None:
            total = at.Partial(*(x[:, self._places] for x in total))
        grouped = q.swapaxes(0, 1)
        for batch in self._shared:
            found = batch.attend(layer, grouped, options.window, options.softcap)
            total = at.merge(total, found)
        return total.normalised(options.sinks)

    def in_batches(self, attend: Callable[[PrivateBatch], mx.array]) -> mx.array:
        outs = [attend(batch) for batch in self.private]
        return outs[0] if self._places is None else mx.concatenate(outs)[self._places]

    def order_of_tail(self, rows: Sequence[Row], steps: int) -> mx.array:
        """Return indices that sort the new keys of all batches by row, then by step.

        The indices refer to the results of `PrivateBatch.tail`, joined. Steps without a slot are
        left out.
        """
        order = [i for batch in self.private for i in batch.members]
        begins = {row: place * steps for place, row in enumerate(order)}
        return mx.array(
            [
                begins[i] + step
                for i, row in enumerate(rows)
                for step in range(len(row.slots))[:steps]
            ],
            mx.int32,
        )


def _follows(row: Row, before: Row, steps: int) -> bool:
    """Return True if `row` is `before`, continued by `steps` tokens with keys in `before.slots`.

    Rows with explicit prefix positions never follow each other.
    """
    plain = row.prefix_positions is None and before.prefix_positions is None
    return plain and row.prefix == (*before.prefix, *before.slots[:steps])
