"""Shared prefixes of a decode epoch's sequences (rows), gathered once and attended in batches.

A batch holds spans (shared stretches of prefix), of which no two have a row in common
(`spans.batches`). The spans are padded to one length and one number of rows, so that the batch is
one matrix product. The number of operations of a step then grows with the levels of the prefix
tree, not with its nodes.

Layout of a batch: queries `(kv_heads * spans, rows, group, dim)`, keys and values `(kv_heads *
spans, length, dim)`. `rows` and `length` are the largest among the spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.spans import Span
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex, Slots
from sgl_mlx.runtime.scheduler.plan import Row

NOWHERE = -(1 << 30)
"""Position of padding keys, which are always masked."""


class SharedBatch:
    """Keys and values of several spans, which are stretches of prefix that rows share.

    Args:
        layers: the layers that read this batch.
        rows: all rows of the epoch.
        spans: the spans; no row belongs to two of them. They are padded to one length.
    """

    def __init__(
        self, pool: KVPool, layers: Sequence[int], rows: Sequence[Row], spans: Sequence[Span]
    ) -> None:
        self._spans = len(spans)
        self._length = max(len(span.slots) for span in spans)
        self._members = _Members(spans, len(rows))
        slots = [slot for span in spans for slot in padded(span.slots, self._length, 0)]
        index = SlotIndex(slots)
        self._keys = {i: self._by_head(pool.keys[i], index) for i in layers}
        self._values = {
            i: keys[..., : pool.layers[i].value_dim]
            if pool.layers[i].values_in_keys
            else self._by_head(pool.values[i], index)
            for i, keys in self._keys.items()
        }
        positions = [_positions(rows[span.first], span) for span in spans]
        self._key_positions = mx.array(
            [padded(p, self._length, NOWHERE) for p in positions], mx.int32
        )
        self._padded = any(len(p) < self._length for p in positions)
        last = max(rows[i].position for i in self._members.rows)
        self._reach = last - 1 - min(min(p) for p in positions)
        self._biases: dict[tuple[int | None, int], mx.array] = {}

    def begin_step(self, positions: mx.array) -> None:
        """Begin the next step; its queries have `positions (rows,)`, one above the last step's."""
        self._positions = positions
        self._reach += 1
        self._biases = {key: bias for key, bias in self._biases.items() if key[0] is None}

    def attend(
        self, layer: int, queries: mx.array, window: int | None, softcap: float | None
    ) -> at.Partial:
        """Attend all rows' scaled queries `(kv_heads, rows, group, dim)` to the spans' keys.

        Each row attends to its own span. Rows without a span in this batch get an empty softmax.
        """
        kv_heads, _, group, dim = queries.shape
        q = self._members.pick(queries).reshape(kv_heads * self._spans, -1, group, dim)
        bias = self._bias(window, kv_heads)
        found = at.attend(q, self._keys[layer], self._values[layer], bias, softcap)
        by_row = at.Partial(*(x.reshape(kv_heads, -1, group, x.shape[-1]) for x in found))
        return self._members.put_back(by_row)

    def _by_head(self, slots: Slots, index: SlotIndex) -> mx.array:
        found = slots.read(index)
        _, heads, dim = found.shape
        split = found.reshape(self._spans, self._length, heads, dim).transpose(2, 0, 1, 3)
        return mx.contiguous(split).reshape(heads * self._spans, self._length, dim)

    def _bias(self, window: int | None, kv_heads: int) -> mx.array | None:
        """Compute the mask to add to scores; None if every row sees every key.

        Its shape is `(kv_heads * spans, rows or 1, length)`.
        """
        if window is not None and self._reach < window:
            window = None
        if window is None and not self._padded:
            return None
        key = window, kv_heads
        if key not in self._biases:
            keys = self._key_positions[:, None]
            seen = keys != NOWHERE
            if window is not None:
                queries = self._members.pick(self._positions[None])
                seen = seen & (queries.reshape(self._spans, -1, 1) - keys < window)
            bias = mx.where(seen, 0.0, at.MASKED)
            self._biases[key] = mx.tile(bias, (kv_heads, 1, 1))
        return self._biases[key]


class _Members:
    """Which rows of a batch belong to each span.

    `rows` holds their indices, span after span. Every span gets as many entries as the span
    with most rows; a span with fewer rows repeats its first row.
    """

    def __init__(self, spans: Sequence[Span], count: int) -> None:
        tallest = max(span.last - span.first for span in spans)
        mine = [padded(range(s.first, s.last), tallest, s.first) for s in spans]
        self.rows = [row for rows in mine for row in rows]
        self._pick = SlotIndex(self.rows).where
        places = {row: place for place, row in reversed(list(enumerate(self.rows)))}
        self._everyone = self.rows == list(range(count))
        self._places = mx.array([places.get(row, 0) for row in range(count)], mx.int32)
        self._outside = mx.array([row not in places for row in range(count)])[:, None, None]

    def pick(self, x: mx.array) -> mx.array:
        """Take the spans' rows, `(heads, len(self.rows), …)`, from `(heads, all rows, …)`."""
        return x[:, self._pick]

    def put_back(self, part: at.Partial) -> at.Partial:
        """Expand the partial softmax of the spans' rows to all rows, empty for other rows."""
        if self._everyone:
            return part
        out, peak, mass = (x[:, self._places] for x in part)
        return at.Partial(out, mx.where(self._outside, at.MASKED, peak), mass)


def padded(values: Sequence[int], length: int, padding: int) -> list[int]:
    return [*values, *[padding] * (length - len(values))]


def _positions(row: Row, span: Span) -> list[int]:
    positions = row.prefix_positions or range(len(row.prefix))
    return list(positions[span.start : span.start + len(span.slots)])
