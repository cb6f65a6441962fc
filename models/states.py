"""Recurrent states of a step's rows (sequences), and groups of rows with equally many tokens.

A recurrent module of mlx-lm takes tokens `(rows, length)`, with one length for all rows. A ragged
step has tokens `(tokens, 1)` of rows of any length. `RowGroups` converts between these layouts:
rows of equal length form a group, so no row is padded and no mask is needed. mlx-lm's results with
padding are wrong for some architectures, and masks switch off its fast kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx


class StateShape(NamedTuple):
    """Shape of one array of recurrent state of one sequence.

    Attributes:
        layer: index among the recurrent layers, from 0; layers of attention do not count.
        shape: shape for one sequence, without an axis for rows.
        dtype: float32 for most recurrent states, the model's own type for convolutions.
    """

    layer: int
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        """Bytes that one sequence's array takes."""
        size = self.dtype.size
        for length in self.shape:
            size *= length
        return int(size)


@dataclass
class RowStates:
    """Recurrent states of a step's rows, before and after the step.

    Attributes:
        lengths: number of tokens of each row; row after row, they are the step's tokens.
        arrays: one array `(rows, *shape)` for each entry of `Adapter.states`: the state before
            each row's first token of the step. A new sequence has zeros.
        new: the states after each row's last token, in the form of `arrays`; `Adapter.forward`
            sets it.
    """

    lengths: tuple[int, ...]
    arrays: Sequence[mx.array]
    new: list[mx.array] = field(default_factory=list)


class RowGroups:
    """Groups of a step's rows with equally many tokens, in order of first appearance.

    Args:
        lengths: number of tokens of each row, in order.

    Attributes:
        tokens: number of tokens of all rows.
        groups: the groups; every row is in one group.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        starts, tokens = [], 0
        for length in lengths:
            starts.append(tokens)
            tokens += length
        members: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            members.setdefault(length, []).append(row)
        self.lengths = tuple(lengths)
        self.tokens = tokens
        self._starts = starts
        self.groups = [RowGroup(length, rows, starts) for length, rows in members.items()]
        rows = [row for group in self.groups for row in group.rows]
        places = [i for group in self.groups for i in group.places]
        self._row_order = _inverse(rows)
        self._token_order = _inverse(places)

    @cached_property
    def places_before(self) -> mx.array:
        """For each token, the index of what precedes it in `[states of all rows] + [all tokens]`.

        The first token of a row is preceded by the row's state.
        """
        rows, places = len(self.lengths), []
        for row, (start, length) in enumerate(zip(self._starts, self.lengths, strict=True)):
            places += [row, *range(rows + start, rows + start + length - 1)]
        return mx.array(places)

    def take_lasts(self, array: mx.array) -> mx.array:
        """Select the last token of each row from an array `(tokens, ...)`."""
        ends = [s + n - 1 for s, n in zip(self._starts, self.lengths, strict=True)]
        return mx.take(array, mx.array(ends), axis=0)

    def join_rows(self, parts: Sequence[mx.array]) -> mx.array:
        """Join arrays `(rows of a group, ...)` to `(rows, ...)`, in the order of the step's rows.

        Args:
            parts: one array for each group, in the order of `groups`.
        """
        return _join(parts, self._row_order)

    def join_tokens(self, parts: Sequence[mx.array]) -> mx.array:
        """Join arrays `(rows, length, ...)`, one per group, in the order of the step's tokens.

        Returns:
            An array `(tokens, 1, ...)`.
        """
        flat = [part.reshape(-1, 1, *part.shape[2:]) for part in parts]
        return _join(flat, self._token_order)


class RowGroup:
    """Rows of a step that have equally many tokens.

    Attributes:
        length: number of tokens of each row.
        rows: indices of the rows.
        places: indices in the step of the rows' tokens, row after row.
    """

    def __init__(self, length: int, rows: Sequence[int], starts: Sequence[int]) -> None:
        self.length = length
        self.rows = rows
        self.places = [starts[row] + i for row in rows for i in range(length)]
        self._rows = _Selection(rows)
        self._places = _Selection(self.places)
        self._firsts = _Selection([starts[row] for row in rows])

    def take_rows(self, array: mx.array) -> mx.array:
        """Select this group's rows of an array `(rows, ...)`."""
        return self._rows.of(array)

    def take_tokens(self, array: mx.array) -> mx.array:
        """Select this group's tokens of an array `(tokens, 1, ...)`, as `(rows, length, ...)`."""
        return self._places.of(array).reshape(len(self.rows), self.length, *array.shape[2:])

    def take_firsts(self, array: mx.array) -> mx.array:
        """Select the first token of each row of this group from an array `(tokens, ...)`."""
        return self._firsts.of(array)


class _Selection:
    """Indices along the first axis; a slice where they are consecutive, to copy nothing."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._first, self._end = indices[0], indices[0] + len(indices)
        consecutive = list(indices) == list(range(self._first, self._end))
        self._indices = None if consecutive else mx.array(list(indices))

    def of(self, array: mx.array) -> mx.array:
        if self._indices is not None:
            return mx.take(array, self._indices, axis=0)
        whole = self._first == 0 and self._end == array.shape[0]
        return array if whole else array[self._first : self._end]


def _inverse(order: Sequence[int]) -> mx.array | None:
    """Invert a permutation; None if it changes nothing."""
    if list(order) == sorted(order):
        return None
    inverse = [0] * len(order)
    for place, index in enumerate(order):
        inverse[index] = place
    return mx.array(inverse)


def _join(parts: Sequence[mx.array], order: mx.array | None) -> mx.array:
    joined = parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=0)
    return joined if order is None else mx.take(joined, order, axis=0)
