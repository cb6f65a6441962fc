"""The allocator of KV slot numbers.

Slot 0 is never given out, because padding uses it. Free slots are kept as sorted, disjoint runs. An
allocation is one ascending run if one is long enough, because such slots are read without a gather.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""A range of slots: the first one, and the one after the last."""


class SlotAllocator:
    """An allocator of the slots 1 … `capacity`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free_count = capacity
        self._runs: list[Run] = [(1, capacity + 1)] if capacity else []

    def alloc(self, count: int) -> list[int]:
        """Allocate `count` slots in ascending order: one run if one is long enough.

        Raises:
            ValueError: fewer than `count` slots are free; check `free_count` first.
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
        """Free slots, given in any order.

        Raises:
            ValueError: a slot is already free, given twice, or not one of the allocator's.
        """
        for run in _runs_of(sorted(slots)):
            self._insert(run)
            self.free_count += run[1] - run[0]

    def grow(self, capacity: int) -> None:
        """Raise the capacity to `capacity`; the new slots are free."""
        first, self.capacity = self.capacity + 1, capacity
        self._insert((first, capacity + 1))
        self.free_count += capacity + 1 - first

    def free_slots(self) -> Iterator[int]:
        for start, end in self._runs:
            yield from range(start, end)

    def check(self) -> None:
        """Assert that the free runs are sorted, disjoint, maximal and counted correctly."""
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
    """Yield the maximal runs of a sorted list; a repeated slot gives two overlapping runs."""
    start = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            yield slots[start], slots[i - 1] + 1
            start = i
