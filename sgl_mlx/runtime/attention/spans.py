"""Spans: the stretches of prefix that rows of a step have in common.

Rows are sorted by their prefix slots, so that rows that share a prefix (forks, few-shot examples,
chat history: the radix tree gives them the same slots) stand side by side. Each shared stretch
becomes one `Span`, attended once for all its rows. Plain integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgl_mlx.runtime.cache.radix import common_prefix
from sgl_mlx.runtime.scheduler.plan import Row

MIN_SHARED = 32
"""Fewest shared keys for which attending two rows together is faster."""

MOST_PADDING = 1.5
"""Most padded work per true work of a batch of spans; beyond it, two batches are faster."""

FREE_PADDING = 1024
"""Query-key products of padding that cost no more than launching one more batch."""

MOST_HELD = 1.3
"""Most keys that a padded buffer holds per key that is attended."""

FREE_KEYS = 64
"""Keys of padding a stretch that are too few to count: as many as an epoch's steps add."""


@dataclass(frozen=True)
class Span:
    """Prefix keys `[start, start + len(slots))` that the rows `first … last - 1` share."""

    first: int
    last: int
    start: int
    slots: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.last - self.first

    def touches(self, other: Span) -> bool:
        """True if some row has both spans."""
        return self.first < other.last and other.first < self.last


def shared_spans(rows: Sequence[Row], min_shared: int = MIN_SHARED) -> tuple[list[Span], list[int]]:
    """Split the prefixes of sorted rows into shared stretches and private rests.

    Returns:
        The spans of two rows or more, and for each row where its private rest starts.
    """
    spans: list[Span] = []
    private = [0] * len(rows)

    def split(first: int, last: int, depth: int) -> None:
        if last - first < 2:
            return
        shortest, longest = rows[first].prefix, rows[last - 1].prefix
        common = depth + common_prefix(shortest[depth:], longest, depth)
        groups = _groups(rows, first, last, common)
        if common - depth >= min_shared:
            spans.append(Span(first, last, depth, shortest[depth:common]))
            private[first:last] = [common] * (last - first)
            depth = common
        for group in groups:
            if group != (first, last):
                split(*group, depth)

    split(0, len(rows), 0)
    return spans, private


def batches(spans: Sequence[Span]) -> list[list[Span]]:
    """Group spans to attend together, padded to one length and number of rows.

    No two spans of a batch belong to the same row, and padding stays within `MOST_PADDING` and
    `MOST_HELD`.
    """
    found: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (-s.rows * len(s.slots), s.first)):
        for batch in found:
            if not any(span.touches(s) for s in batch) and _pads_little([*batch, span]):
                batch.append(span)
                break
        else:
            found.append([span])
    return [sorted(batch, key=lambda s: s.first) for batch in found]


def _pads_little(batch: Sequence[Span]) -> bool:
    work = sum(s.rows * len(s.slots) for s in batch)
    lengths = [len(s.slots) for s in batch]
    padded = len(batch) * max(s.rows for s in batch) * max(lengths)
    return padded <= MOST_PADDING * work + FREE_PADDING and _holds_little(lengths)


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group stretches of these lengths to pad together, so that `MOST_HELD` is kept.

    Returns:
        Indices into `lengths`, ascending in each group; the groups of the longest first.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and _holds_little([lengths[j] for j in (*groups[-1], i)]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return [sorted(group) for group in groups]


def _holds_little(lengths: Sequence[int]) -> bool:
    return len(lengths) * max(lengths) <= MOST_HELD * sum(lengths) + FREE_KEYS * len(lengths)


def seen_from(row: Row, start: int, end: int, position: int, window: int | None) -> int:
    """Find the first of a row's prefix keys `start … end - 1` that a query at `position` sees.

    All keys before it are outside the window; `end` if all are. Keys after it may be too, where
    positions are no plain count.
    """
    if window is None:
        return start
    oldest = position - window + 1
    if row.prefix_positions is None:
        return min(max(start, oldest), end)
    return next((i for i in range(start, end) if row.prefix_positions[i] >= oldest), end)


def clipped(span: Span, rows: Sequence[Row], window: int | None) -> Span:
    """Drop the leading keys of a span that none of its rows sees through the window."""
    position = min(row.position for row in rows[span.first : span.last])
    end = span.start + len(span.slots)
    start = seen_from(rows[span.first], span.start, end, position, window)
    return replace(span, start=start, slots=span.slots[start - span.start :])


def _groups(rows: Sequence[Row], first: int, last: int, depth: int) -> list[tuple[int, int]]:
    """Find the ranges of rows that agree in the slot at `depth`."""

    def slot(i: int) -> int:
        prefix = rows[i].prefix
        return prefix[depth] if depth < len(prefix) else -1

    edges = [i for i in range(first + 1, last) if slot(i) != slot(i - 1)]
    return list(zip([first, *edges], [*edges, last], strict=True))
