"""Prefill chunks whose rows choose their keys, so that each is attended by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import mlx.core as mx

from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

MOST_SCORES = 2**24
"""Most scores of a tile of a chunk's tokens."""


class RowByRow:
    """Prefill chunks whose rows are attended one after another, in tiles.

    Args:
        rows: the chunks' rows.

    Attributes:
        ranges: the tokens of each row.
    """

    def __init__(self, pool: KVPool, rows: Sequence[Row]) -> None:
        self._pool = pool
        self._rows = rows
        starts = [0, *accumulate(len(row.tokens) for row in rows)]
        self.ranges = [slice(a, b) for a, b in pairwise(starts)]

    def tiles(self, row: int, most: int) -> Iterator[tuple[slice, int]]:
        """Cut a row's new tokens into tiles of at most `most`.

        Yields:
            The tokens of a tile, counted from the row's first new token, and the number of all
            tokens of the sequence before them.
        """
        prefix, tokens = len(self._rows[row].prefix), len(self._rows[row].tokens)
        for start in range(0, tokens, most):
            yield slice(start, min(start + most, tokens)), prefix + start

    def whole(self, layer: int, row: int, new: tuple[mx.array, mx.array]) -> list[mx.array]:
        """Join a layer's keys and values of a row's prefix with those of its new tokens."""
        prefix = self._rows[row].prefix
        if not prefix:
            return list(new)
        old = self._pool.gather(layer, SlotIndex(prefix))
        return [mx.concatenate([a, b]) for a, b in zip(old, new, strict=True)]
