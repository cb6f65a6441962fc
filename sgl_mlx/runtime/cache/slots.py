"""The allocator of KV slots. Plain integers; knows nothing of what is stored in them.

Slot 0 is never handed out: padding points at it. Free slots are kept as sorted, disjoint runs, so
that an allocation is one ascending run whenever one is long enough: ascending slots are read
without a gather.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""A half-open range of slots."""


class SlotAllocator:
    """An allocator of `capacity` slots, numbered 1 … capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free_count = capacity
        self._runs: list[Run] = [(1, capacity + 1)] if capacity else []

    def alloc(self, count: int) -> list[int]:
        """Take `count` slots, ascending; one run if there is one long enough.

        Raises:
            ValueError: when fewer than `count` are free. Ask `free_count` first.
        """
        if count > self.free_count:
            raise ValueError(f"{count} slots wanted, {self.free_count} free")
        self.free_count -= count
        for i, (start, end) in enumerate(self._runs):
            if end - start >= count:
                self._shorten(i, start + count)
                return list(range(start, start + count))
        return self._alloc_scattered(count)

    def free(self, slots: Iterable[int]) -> None:
        """Take slots back, in any order.

        Raises:
            ValueError: for a slot that is already free or was never handed out.
        """
        for run in _runs_of(sorted(slots)):
            self._insert(run)
            self.free_count += run[1] - run[0]

    def grow(self, capacity: int) -> None:
        """Add free slots up to `capacity`."""
        first, self.capacity = self.capacity + 1, capacity
        self._insert((first, capacity + 1))
        self.free_count += capacity + 1 - first

    def free_slots(self) -> Iterator[int]:
        for start, end in self._runs:
            yield from range(start, end)

    def check(self) -> None:
        """Assert that runs are sorted, disjoint, maximal and counted."""
        assert self.free_count == sum(end - start for start, end in self._runs)
        assert all(0 < start < end <= self.capacity + 1 for start, end in self._runs)
        assert all(a[1] < b[0] for a, b in zip(self._runs, self._runs[1:], strict=False))

    def _shorten(self, i: int, start: int) -> None:
        end = self._runs[i][1]
        if start == end:
            del self._runs[i]
        else:
            self._runs[i] = (start, end)

    def _alloc_scattered(self, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count:
            start, end = self._runs[0]
            stop = min(end, start + count - len(taken))
            taken.extend(range(start, stop))
            self._shorten(0, stop)
        return taken

    def _insert(self, run: Run) -> None:
        start, end = run
        i = bisect_right(self._runs, start, key=lambda r: r[0])
        before = self._runs[i - 1] if i > 0 else (0, 0)
        after = self._runs[i] if i < len(self._runs) else (self.capacity + 2, 0)
        if start < 1 or end > self.capacity + 1 or before[1] > start or after[0] < end:
            raise ValueError(f"slots {start}..{end - 1} are not all in use")
        low, high = i, i
        if i > 0 and before[1] == start:
            low, start = i - 1, before[0]
        if after[0] == end:
            high, end = i + 1, after[1]
        self._runs[low:high] = [(start, end)]


def _runs_of(slots: list[int]) -> Iterator[Run]:
    """Split a sorted list into maximal runs; a repeated slot gives two overlapping runs."""
    start = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            yield slots[start], slots[i - 1] + 1
            start = i
