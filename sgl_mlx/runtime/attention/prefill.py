"""Attention of prefill chunks in plain MLX: the extend attention of SGLang's paper.

A chunk is the new tokens of one sequence (a row). It attends to the sequence's whole prefix in the
KV pool and, causally, to itself. A prefix that several sequences share is attended once for all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.spans import MIN_SHARED, Span, clipped, shared_spans, windowed
from sgl_mlx.runtime.pool.kv import SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row


class Gathers(Protocol):
    """Source of keys and values by layer and slot, such as a `KVPool`."""

    @property
    def layers(self) -> Sequence[LayerShape]:
        """Shape of each layer; `Chunks` reads only the window from it."""
        ...

    @property
    def windowed(self) -> Collection[int]:
        """The layers that have window slots of their own."""
        ...

    def gather(self, layer: int, index: SlotIndex) -> tuple[mx.array, mx.array]:
        """Return a layer's keys and values at the slots of `index`, each `(slots, heads, dim)`."""
        ...


class Chunks:
    """Attention of the new tokens of `rows` in one step, in plain MLX.

    Args:
        rows: sorted by their prefix slots.
        min_shared: fewest keys of a shared prefix that is attended once for all its rows.
        most_keys: most prefix keys that are gathered at once; None for any number.
    """

    def __init__(
        self,
        pool: Gathers,
        rows: Sequence[Row],
        min_shared: int = MIN_SHARED,
        most_keys: int | None = None,
    ) -> None:
        self._pool = pool
        self._most_keys = most_keys
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row.tokens))
        self._ranges = list(pairwise(starts))
        self._levels = {
            window: _levels(self._prefix_parts(rows, min_shared, window))
            for window in {x.window for x in pool.layers}
        }
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}
        self._causal: dict[tuple[int, int, int, int | None], mx.array] = {}

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(tokens, kv_heads, dim)`, before `attend`."""
        by_head = (mx.contiguous(x.swapaxes(0, 1)) for x in (keys, values))
        self._stored[layer] = next(by_head), next(by_head)

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(tokens, heads, dim)`; returns `(tokens, heads, value_dim)`."""
        scale, window, softcap, sinks = options
        keys, values = self._stored[layer]
        q = at.group_heads(queries, keys.shape[0], scale)
        own = [
            at.attend_causal(
                q[:, a:b], keys[:, a:b], values[:, a:b], window, self._causal_bias, softcap
            )
            for a, b in self._ranges
        ]
        total = at.concatenate(own)
        for level in self._levels[self._pool.layers[layer].window]:
            seen = [self._attend_prefix(layer, part, q, window, softcap) for part in level]
            whole = at.spread(seen, [part.first for part in level], q.shape[1])
            total = at.merge(total, whole)
        return total.normalised(sinks)

    def _attend_prefix(
        self,
        layer: int,
        part: _PrefixPart,
        queries: mx.array,
        window: int | None,
        softcap: float | None,
    ) -> at.Partial:
        keys, values = (x.swapaxes(0, 1) for x in self._pool.gather(layer, part.index))
        mine = queries[:, part.first : part.last]
        return at.attend_tiled(mine, keys, values, part.bias(window), softcap)

    def _causal_bias(self, tokens: int, offset: int, length: int, window: int | None) -> mx.array:
        key = tokens, offset, length, window
        if key not in self._causal:
            self._causal[key] = at.causal_bias(*key)
        return self._causal[key]

    def _prefix_parts(
        self, rows: Sequence[Row], min_shared: int, window: int | None
    ) -> list[_PrefixPart]:
        """Cut the prefixes into shared stretches and the private rest of each row.

        No part has more than `most_keys` keys. Leading keys that are outside the window of every
        token are left out.
        """
        spans, private = shared_spans(rows, min_shared)
        spans += [Span(i, i + 1, n, rows[i].prefix[n:]) for i, n in enumerate(private)]
        if window is not None and self._pool.windowed:
            spans = [windowed(span, rows) for span in spans]
        seen = [clipped(span, rows, window) for span in spans]
        stretches = [
            replace(s, start=s.start + i, slots=s.slots[i : i + step])
            for s in seen
            for step in [self._most_keys or max(len(s.slots), 1)]
            for i in range(0, len(s.slots), step)
        ]
        return [
            _PrefixPart(
                rows[s.first : s.last], self._ranges[s.first][0], self._ranges[s.last - 1][1], s
            )
            for s in stretches
        ]


class _PrefixPart:
    """Prefix keys of the `span` that `rows` share.

    The new tokens of `rows` attend to these keys. Their indices among the new tokens of the step
    are `first` to `last - 1`.
    """

    def __init__(self, rows: Sequence[Row], first: int, last: int, span: Span) -> None:
        self.first, self.last = first, last
        self.index = SlotIndex(span.slots)
        positions = rows[0].prefix_positions or range(len(rows[0].prefix))
        self._keys = list(positions[span.start : span.start + len(span.slots)])
        self._queries = [
            p for row in rows for p in range(row.position, row.position + len(row.tokens))
        ]
        self._biases: dict[int, mx.array] = {}

    def bias(self, window: int | None) -> mx.array | None:
        """Return the window's mask `(tokens, keys)`; None if every key is in the window."""
        if window is None or max(self._queries) - min(self._keys) < window:
            return None
        if window not in self._biases:
            queries, keys = mx.array(self._queries, mx.int32), mx.array(self._keys, mx.int32)
            self._biases[window] = at.position_bias(queries, keys, window)
        return self._biases[window]


def _levels(parts: Sequence[_PrefixPart]) -> list[list[_PrefixPart]]:
    """Group parts into levels; in a level, parts are in token order and share no token."""
    levels: list[list[_PrefixPart]] = []
    for part in sorted(parts, key=lambda p: p.first):
        free = (level for level in levels if level[-1].last <= part.first)
        level = next(free, None)
        if level is None:
            levels.append([part])
        else:
            level.append(part)
    return levels
