"""Spans: the stretches of prefix that sequences (rows) of a step have in common.

The radix tree gives the same slots to a prefix that several sequences share, such as forks or
few-shot examples. Rows are sorted by their prefix slots, so that these sequences are neighbours.
Each shared stretch becomes one `Span`, which is attended once for all its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgl_mlx.runtime.cache.radix import common_prefix
from sgl_mlx.runtime.scheduler.plan import Row

MIN_SHARED = 32
"""Fewest shared keys for which it is faster to attend the rows together."""

MOST_PADDING = 1.5
"""Largest ratio of work with padding to work without, in a batch of spans.

Beyond this ratio two batches are faster.
"""

FREE_PADDING = 1024
"""Number of padded query-key products that cost as much as launching one more batch."""

MOST_HELD = 1.3
"""Largest ratio of keys with padding to keys without, in a padded buffer."""

FREE_KEYS = 64
"""Padding keys per stretch that are allowed beyond `MOST_HELD`: as many as an epoch adds."""


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
        """Return True if a row belongs to both spans."""
        return self.first < other.last and other.first < self.last


def shared_spans(rows: Sequence[Row], min_shared: int = MIN_SHARED) -> tuple[list[Span], list[int]]:
    """Split the prefixes of sorted rows into shared stretches and a private rest for each row.

    Args:
        rows: sorted by their prefix slots.
        min_shared: fewest keys of a span.

    Returns:
        The spans that two or more rows share, and the index in each row's prefix where its
        private rest starts.
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
    """Group spans into batches that are padded to one length and attended together.

    No row belongs to two spans of a batch. Padding stays within `MOST_PADDING` and `MOST_HELD`.
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
    """Group stretches of keys of similar lengths, to be padded to one length per group.

    Args:
        lengths: number of keys of each stretch; padding stays within `MOST_HELD`.

    Returns:
        Groups of indices into `lengths`, the group of the longest stretches first. Indices ascend
        within a group.
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


def windowed(span: Span, rows: Sequence[Row]) -> Span:
    """Return the span with the slots that its tokens have in layers with window slots of their own.

    Keys outside the window of all its rows have slot 0.
    """
    oldest = min(rows[span.first : span.last], key=lambda row: row.position)
    end = span.start + len(span.slots)
    return replace(span, slots=oldest.keys(True)[span.start : end])


def seen_from(row: Row, start: int, end: int, position: int, window: int | None) -> int:
    """Find the first of a row's prefix keys `start … end - 1` inside a query's window.

    Args:
        position: the query's position.
        window: None if every key is seen.

    Returns:
        The key's index; `end` if no key is in the window. With explicit `prefix_positions`, later
        keys may still be outside the window.
    """
    if window is None:
        return start
    oldest = position - window + 1
    if row.prefix_positions is None:
        return min(max(start, oldest), end)
    return next((i for i in range(start, end) if row.prefix_positions[i] >= oldest), end)


def clipped(span: Span, rows: Sequence[Row], window: int | None) -> Span:
    """Return the span without the leading keys that are outside the window of all its rows."""
    position = min(row.position for row in rows[span.first : span.last])
    end = span.start + len(span.slots)
    start = seen_from(rows[span.first], span.start, end, position, window)
    return replace(span, start=start, slots=span.slots[start - span.start :])


def _groups(rows: Sequence[Row], first: int, last: int, depth: int) -> list[tuple[int, int]]:
    """Find the ranges `(first, last)` of neighbouring rows with the same slot at index `depth`."""

    def slot(i: int) -> int:
        prefix = rows[i].prefix
        return prefix[depth] if depth < len(prefix) else -1

    edges = [i for i in range(first + 1, last) if slot(i) != slot(i - 1)]
    return list(zip([first, *edges], [*edges, last], strict=True))
