"""Attention of an `Extend` step: chunks and single tokens over prefixes in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import mlx.core as mx

from sgl_mlx.runtime import attention as at
from sgl_mlx.runtime.kv import KVPool, SlotIndex
from sgl_mlx.runtime.layout import shared_spans
from sgl_mlx.runtime.plan import Row


class PrefixPart:
    """Prefix keys that the tokens `first … last - 1` of a step see."""

    def __init__(
        self, first: int, last: int, slots: Sequence[int], positions: Sequence[int]
    ) -> None:
        self.first, self.last = first, last
        self.index = SlotIndex(slots)
        self._positions = positions
        self._lowest = positions[0] if isinstance(positions, range) else min(positions)

    def bias(self, queries: mx.array, highest: int, window: int | None) -> mx.array | None:
        """The window's mask `(tokens, keys)`, or None where every key is in the window.

        `queries` are the positions of all tokens of the step, `highest` this part's largest.
        """
        if window is None or highest - self._lowest < window:
            return None
        keys = mx.array(list(self._positions), mx.int32)
        return at.position_bias(queries[self.first : self.last], keys, window)


class ExtendStep:
    """The tokens of some rows, one after another, and their attention.

    After the forward pass `keys[layer]` and `values[layer]` hold the new KV
    `(tokens, heads, dim)`; `slots` says where it goes.
    """

    def __init__(self, pool: KVPool, rows: Sequence[Row]) -> None:
        self._pool = pool
        self._rows = rows
        self.slots = [slot for row in rows for slot in row.slots[: len(row.tokens)]]
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row.tokens))
        self.ranges = list(pairwise(starts))
        self._positions = [
            p for row in rows for p in range(row.position, row.position + len(row.tokens))
        ]
        self.tokens = mx.array([t for row in rows for t in row.tokens], mx.int32)
        self.positions = mx.array(self._positions, mx.int32)
        self._parts = self._prefix_parts()
        self._biases: dict[tuple[int, int | None], mx.array | None] = {}

    @property
    def keys(self) -> list[mx.array]:
        return [self._stored[layer][0] for layer in range(len(self._pool.layers))]

    @property
    def values(self) -> list[mx.array]:
        return [self._stored[layer][1] for layer in range(len(self._pool.layers))]

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """See `models.layer_cache.Attention`."""
        self._stored[layer] = keys, values

    def attend(
        self,
        layer: int,
        queries: mx.array,
        scale: float,
        window: int | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """See `models.layer_cache.Attention`."""
        keys, values = self._stored[layer]
        grouped = at.group_heads(queries, keys.shape[1], scale)
        total = self._own(grouped, keys.swapaxes(0, 1), values.swapaxes(0, 1), window)
        for part in self._parts:
            bias = self._bias(part, window)
            k, v = self._pool.gather(layer, part.index)
            piece = at.attend(
                grouped[:, part.first : part.last], k.swapaxes(0, 1), v.swapaxes(0, 1), bias
            )
            total = at.merge_range(total, part.first, part.last, piece)
        return total.normalised(sinks)

    def _own(
        self, queries: mx.array, keys: mx.array, values: mx.array, window: int | None
    ) -> at.Partial:
        """Every token over the new tokens of its own row."""
        singles = self._single_tokens
        parts = []
        if singles:
            q, k, v = queries[:, :singles], keys[:, :singles], values[:, :singles]
            score = (q * k[:, :, None]).sum(axis=-1, keepdims=True)
            out = mx.broadcast_to(v[:, :, None], (*q.shape[:3], v.shape[-1]))
            parts.append(at.Partial(out, score, mx.ones_like(score)))
        for first, last in self.ranges[singles:]:
            own = slice(first, last)
            parts.append(at.attend_causal(queries[:, own], keys[:, own], values[:, own], window))
        return at.concatenate(parts)

    @cached_property
    def _single_tokens(self) -> int:
        return sum(len(row.tokens) == 1 for row in self._rows)

    def _prefix_parts(self) -> list[PrefixPart]:
        """Shared stretches first, then what each row has alone."""
        parts = []
        singles = self._single_tokens
        for offset, rows in ((0, self._rows[:singles]), (singles, self._rows[singles:])):
            spans, private = shared_spans(rows)
            for span in spans:
                first = self.ranges[offset + span.first][0]
                last = self.ranges[offset + span.last - 1][1]
                positions = _prefix_positions(rows[span.first])[span.start :]
                parts.append(PrefixPart(first, last, span.slots, positions[: len(span.slots)]))
            for i, (row, start) in enumerate(zip(rows, private, strict=True)):
                if start < len(row.prefix):
                    first, last = self.ranges[offset + i]
                    positions = _prefix_positions(row)[start:]
                    parts.append(PrefixPart(first, last, row.prefix[start:], positions))
        return parts

    def _bias(self, part: PrefixPart, window: int | None) -> mx.array | None:
        key = (id(part), window)
        if key not in self._biases:
            highest = max(self._positions[part.first : part.last])
            self._biases[key] = part.bias(self.positions, highest, window)
        return self._biases[key]


def _prefix_positions(row: Row) -> Sequence[int]:
    return row.prefix_positions if row.prefix_positions is not None else range(len(row.prefix))
