"""Plans of a step's attention: which keys each sequence (row) attends to, as tables for kernels.

A plan is built once for a step, or once for all steps of a decode epoch (a run of decode steps of
the same rows). All layers use it.

A key's *position* is its index among the keys of its row: shared spans first, then the row's
private prefix, then its new tokens (the tail of a decode epoch). Tables are flat int32 arrays. All
have `MIN_ELEMENTS` or more, because MLX passes smaller arrays in another address space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

MIN_ELEMENTS = 8
TILE_ROWS = 32
"""Most query vectors in a tile of the extend and shared kernels: 4 simdgroups of 8."""

CHUNKS = (64, 128, 256, 512)
"""Possible numbers of keys in a partial softmax of the decode and shared kernels.

`CutOvers.chunk` chooses one of them.
"""


def tile_rows(dim: int, value_dim: int) -> int:
    """Return the number of query vectors in a tile of the extend and shared kernels.

    The number depends on the head dims, as in `attention.h`.
    """
    slices = 4 if dim + value_dim > 768 else 2 if dim + value_dim > 384 else 1
    return TILE_ROWS // slices


class ExtendRow(NamedTuple):
    """One sequence of an extend step: its prefix's slots in the pool, and number of new tokens."""

    prefix: Sequence[int]
    tokens: int


class SharedSpan(NamedTuple):
    """Prefix keys `[start, start + len(slots))` that the rows `first … last - 1` share."""

    first: int
    last: int
    start: int
    slots: Sequence[int]


class ExtendPlan:
    """Plan of extend attention: sequences (rows) with new tokens, each after a prefix in the pool.

    The new tokens of all rows are numbered, one row after another.

    Args:
        rows: the prefix and the number of new tokens of each sequence.

    Raises:
        ValueError: there are no rows, or a row has no new token.

    Attributes:
        slots: the slots of all prefixes, one row after another.
        table: for each row: where its slots begin in `slots`, prefix length, number of its first
            token, number of tokens.
    """

    def __init__(self, rows: Sequence[ExtendRow]) -> None:
        if not rows or min(row.tokens for row in rows) < 1:
            raise ValueError(f"an ExtendPlan needs rows of at least one token, got {list(rows)!r}")
        self.rows = tuple(rows)
        self.tokens = sum(row.tokens for row in rows)
        self.slots = int_table(slot for row in rows for slot in row.prefix)
        begins = offsets(len(row.prefix) for row in rows)
        firsts = offsets(row.tokens for row in rows)
        table = zip(begins, map(len, (row.prefix for row in rows)), firsts, rows, strict=True)
        self.table = int_table(x for *head, row in table for x in (*head, row.tokens))
        self._tiles: dict[tuple[int, int], tuple[mx.array, int]] = {}

    def tiles(self, group: int, size: int = TILE_ROWS) -> tuple[mx.array, int]:
        """Build the table of the extend kernel's tiles.

        A row's (token, head of the group) pairs are numbered, token by token. A tile is `size`
        consecutive pairs.

        Args:
            group: query heads per KV head.
            size: most pairs in a tile.

        Returns:
            A table with the row and the first pair of each tile, and the number of tiles.
        """
        if (group, size) not in self._tiles:
            tiles = [
                (index, first)
                for index, row in enumerate(self.rows)
                for first in range(0, row.tokens * group, size)
            ]
            self._tiles[group, size] = int_table(x for tile in tiles for x in tile), len(tiles)
        return self._tiles[group, size]


class DecodePlan:
    """Plan of decode attention: sequences (rows) with `tokens` new tokens each, after prefixes.

    The runtime decodes one token per row and step. Several tokens per row could verify drafted
    tokens (speculative decoding); so far the runtime uses extend attention for this.

    New tokens are the last `tokens` used columns of a tail `(rows, width, kv_heads, dim)`.

    Args:
        rows: the slots of each row's private prefix.
        spans: prefixes that rows share, outer spans first. The spans of a row cover the positions
            from 0 to the start of its private prefix without a gap.
        width: number of columns of the tail.
        tokens: new tokens of each row in a step, at most `MAX_TOKENS` and `width`.
        chunk: number of keys in a partial softmax.

    Raises:
        ValueError: there are no rows, `tokens` is out of range, or the spans leave a gap.

    Attributes:
        slots: the slots of the private prefixes, one row after another, then of the spans.
        table: for each row: where its private slots begin in `slots`, position of its first private
            key, position of its first tail column, 0.
        span_table: for each span: its first row, its last row + 1, where its slots begin in
            `slots`, position of its first key, number of keys.
        items: partial softmaxes that the decode kernel computes, sorted by row; for each: row,
            first position, last position + 1, 0.
        merges: for each row: its first item, number of items, where its part of `shared_partials`
            begins, length of this part.
        shared_partials: numbers of the shared kernel's partial softmaxes, row by row.
    """

    MAX_TOKENS = 8

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        spans: Sequence[SharedSpan] = (),
        *,
        width: int = 1,
        tokens: int = 1,
        chunk: int = CHUNKS[-1],
    ) -> None:
        if not rows:
            raise ValueError("a DecodePlan needs at least one row, got none")
        if not 1 <= tokens <= min(self.MAX_TOKENS, width):
            raise ValueError(
                f"a DecodePlan takes 1 to {self.MAX_TOKENS} new tokens per row and a tail that "
                f"holds them, got tokens={tokens}, width={width}"
            )
        self.rows, self.spans = tuple(rows), tuple(spans)
        self.width, self.tokens, self.chunk = width, tokens, chunk
        self.starts = _private_starts(len(rows), spans)
        self.ends = [start + len(row) for start, row in zip(self.starts, rows, strict=True)]
        self.slots = int_table(slot for part in self._stretches() for slot in part)
        begins = offsets(map(len, self._stretches()))
        rows_begin = zip(begins, self.starts, self.ends, strict=False)
        self.table = int_table(x for row in rows_begin for x in (*row, 0))
        self.span_table = int_table(
            x
            for span, begin in zip(spans, begins[len(rows) :], strict=True)
            for x in (span.first, span.last, begin, span.start, len(span.slots))
        )
        items = list(self._split_rows(chunk))
        self.item_count = len(items)
        self.items = int_table(x for item in items for x in (*item, 0))
        self._pieces = list(self._split_spans(begins[len(rows) :], chunk))
        self.shared_partial_count = sum(piece.rows for piece in self._pieces)
        self._describe_merges([row for row, *_ in items])
        self._shared_tiles: dict[tuple[int, int], tuple[mx.array, int]] = {}
        self._step: tuple[int, mx.array] | None = None
        self._reals: dict[tuple[float, ...], mx.array] = {}

    def check_tail(self, length: int) -> None:
        """Raise ValueError unless `length`, the used columns of a tail, is `tokens` to `width`."""
        if not self.tokens <= length <= self.width:
            raise ValueError(
                f"tail_length={length} is outside {self.tokens}..{self.width}: "
                "from the new tokens of a row to the columns of the tail"
            )

    def step_table(self, tail_length: int) -> mx.array:
        """Return the array [number of used tail columns, `width`, `tokens`], made once per step.

        Raises:
            ValueError: too few or too many columns are used; see `check_tail`.
        """
        if self._step is None or self._step[0] != tail_length:
            self.check_tail(tail_length)
            self._step = tail_length, int_table([tail_length, self.width, self.tokens])
        return self._step[1]

    def reals(self, *values: float) -> mx.array:
        """Return a flat float32 array of `values`, padded to `MIN_ELEMENTS`; cached."""
        if values not in self._reals:
            padded = [*values, *[0.0] * (MIN_ELEMENTS - len(values))]
            self._reals[values] = mx.array(padded, mx.float32)
        return self._reals[values]

    def shared_tiles(self, group: int, size: int = TILE_ROWS) -> tuple[mx.array, int]:
        """Build the table of the shared kernel's tiles.

        Args:
            group: query heads per KV head.
            size: most query vectors in a tile.

        Returns:
            The table and the number of tiles. For each tile: where its slots begin in `slots`,
            position of its first key, number of keys, first row, number of rows, first partial,
            shortest prefix of these rows, first query vector. Vectors are numbered by row, token,
            head of the group.
        """
        if (group, size) not in self._shared_tiles:
            tiles = [
                (*piece, first)
                for piece in self._pieces
                for first in range(0, piece.rows * self.tokens * group, size)
            ]
            table = int_table(x for tile in tiles for x in tile)
            self._shared_tiles[group, size] = table, len(tiles)
        return self._shared_tiles[group, size]

    def _stretches(self) -> Iterable[Sequence[int]]:
        yield from self.rows
        yield from (span.slots for span in self.spans)

    def _split_rows(self, chunk: int) -> Iterable[tuple[int, int, int]]:
        for row, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            for first in range(start, end + self.width, chunk):
                yield row, first, min(first + chunk, end + self.width)

    def _split_spans(self, begins: Sequence[int], chunk: int) -> Iterable[_Piece]:
        partial = 0
        for span, begin in zip(self.spans, begins, strict=True):
            rows, shortest = span.last - span.first, min(self.ends[span.first : span.last])
            for at in range(0, len(span.slots), chunk):
                keys = min(chunk, len(span.slots) - at)
                place = begin + at, span.start + at, keys
                yield _Piece(*place, span.first, rows, partial, shortest)
                partial += rows

    def _describe_merges(self, item_rows: Sequence[int]) -> None:
        shared: list[list[int]] = [[] for _ in self.rows]
        for piece in self._pieces:
            for i in range(piece.rows):
                shared[piece.first_row + i].append(piece.partial + i)
        counts = [0] * len(self.rows)
        for row in item_rows:
            counts[row] += 1
        lengths = [len(partials) for partials in shared]
        columns = offsets(counts), counts, offsets(lengths), lengths
        self.merges = int_table(x for row in zip(*columns, strict=True) for x in row)
        self.shared_partials = int_table(x for partials in shared for x in partials)


class _Piece(NamedTuple):
    """Part of a span, at most one chunk long; the fields are those of `DecodePlan.shared_tiles`."""

    begin: int
    position: int
    keys: int
    first_row: int
    rows: int
    partial: int
    shortest: int


def offsets(lengths: Iterable[int]) -> list[int]:
    """Return where each of several consecutive stretches begins, given their lengths."""
    return list(accumulate(lengths, initial=0))[:-1]


def int_table(values: Iterable[int]) -> mx.array:
    """Make a flat int32 array, padded with zeros to at least `MIN_ELEMENTS`."""
    flat = list(values)
    return mx.array(flat + [0] * (MIN_ELEMENTS - len(flat)), mx.int32)


def _private_starts(rows: int, spans: Sequence[SharedSpan]) -> list[int]:
    """Compute where each row's private prefix starts.

    Raises:
        ValueError: a row's spans do not cover the positions from 0 on, or a span is empty.
    """
    starts = [0] * rows
    for span in spans:
        covered = starts[span.first : span.last]
        if not covered or len(covered) != span.last - span.first:
            raise ValueError(f"span of rows {span.first}..{span.last - 1}: there are {rows} rows")
        if not span.slots or set(covered) != {span.start}:
            raise ValueError(
                f"span of rows {span.first}..{span.last - 1} with {len(span.slots)} slots starts "
                f"at {span.start}; the spans before it end at {sorted(set(covered))}"
            )
        starts[span.first : span.last] = [span.start + len(span.slots)] * len(covered)
    return starts
