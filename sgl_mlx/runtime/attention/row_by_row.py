"""Prefill chunks attended one row at a time, since each token attends to keys chosen for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import mlx.core as mx

from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

MOST_SCORES = 2**24
"""Most attention scores in one tile; limits the number of tokens in a tile."""


class RowByRow:
    """Base of attention that computes prefill chunks one row (sequence) at a time, in tiles.

    Args:
        rows: the rows, each with its prefix and its new tokens.

    Attributes:
        ranges: for each row, the slice of its tokens among all new tokens of the step.
    """

    def __init__(self, pool: KVPool, rows: Sequence[Row]) -> None:
        self._pool = pool
        self._rows = rows
        starts = [0, *accumulate(len(row.tokens) for row in rows)]
        self.ranges = [slice(a, b) for a, b in pairwise(starts)]

    def tiles(self, row: int, most: int) -> Iterator[tuple[slice, int]]:
        """Cut a row's new tokens into tiles of at most `most` tokens.

        Yields:
            The slice of a tile's tokens, counted from the row's first new token, and the number of
            the sequence's tokens before the tile.
        """
        prefix, tokens = len(self._rows[row].prefix), len(self._rows[row].tokens)
        for start in range(0, tokens, most):
            yield slice(start, min(start + most, tokens)), prefix + start

    def whole(self, layer: int, row: int, new: tuple[mx.array, mx.array]) -> list[mx.array]:
        """Return a layer's keys and values of a whole row, each `(length, heads, dim)`.

        The prefix's part is gathered from the pool; `new` is the part of the new tokens.
        """
        prefix = self._rows[row].prefix
        if not prefix:
            return list(new)
        old = self._pool.gather(layer, SlotIndex(prefix))
        return [mx.concatenate([a, b]) for a, b in zip(old, new, strict=True)]
