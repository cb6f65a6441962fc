"""Rotary positions of rows with pictures, for models that turn by time, row and column (M-RoPE).

A token of text has one position. Tokens of a picture share a time and have the row and the column
of their cell, all counted from the position at which the picture begins; a video has several times.
The text after it goes on from the longest of these three edges (Qwen2-VL, arXiv 2409.12191).
Positions therefore lag behind the number of tokens. Everything but the rotation counts tokens:
slots, masks and the radix tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx

from sgl_mlx.runtime.scheduler.plan import Row, extent

Place = tuple[int, int, int]


def rotary_positions(rows: Sequence[Row], counted: mx.array) -> mx.array:
    """Return the rotary positions of the new tokens of all rows, one row after another.

    Args:
        counted: for each token, the number of tokens before it, `(tokens,)`.

    Returns:
        `(3, tokens)`, time, row and column, if a row shows a picture with a grid; else `(tokens,)`,
        and `counted` itself if no row has seen such a picture.
    """
    if any(part.grid for row in rows for part in row.pictures):
        places = [place for row in rows for place in _places(row)]
        return mx.array(places, mx.int32).T
    if not any(row.lag for row in rows):
        return counted
    return counted - mx.array([row.lag for row in rows for _ in row.tokens], mx.int32)


def lags(rows: Sequence[Row]) -> mx.array:
    """Return by how much the rows' positions lag behind the number of tokens, `(rows,)`."""
    return mx.array([row.lag for row in rows], mx.int32)


def _places(row: Row) -> Iterator[Place]:
    """Yield time, row and column of each new token of a row."""
    at, lag = 0, row.lag
    for part in row.pictures:
        if part.grid is None:
            continue
        yield from _text(row.position + at - lag, part.at - at)
        begin = row.position + part.at - part.first - lag
        cells, columns = part.grid[0] * part.grid[1], part.grid[1]
        for token in range(part.first, part.first + part.length):
            at_time, cell = divmod(token, cells)
            yield begin + part.times[at_time], begin + cell // columns, begin + cell % columns
        count = cells * len(part.times)
        if part.first + part.length == count:
            lag += count - extent(part.grid, part.times)
        at = part.at + part.length
    yield from _text(row.position + at - lag, len(row.tokens) - at)


def _text(first: int, count: int) -> Iterator[Place]:
    return ((p, p, p) for p in range(first, first + count))
