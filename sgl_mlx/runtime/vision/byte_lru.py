"""A cache bounded by bytes, which evicts the least recently used value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLRU(Generic[K, V]):
    """The cache; not for several threads at once.

    Args:
        limit: bytes that all values may have together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Look up a value, and mark it as used."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of `size` bytes; one that is larger than the limit is not kept."""
        if key in self._values:
            self.used -= self._values.pop(key)[1]
        if size > self.limit:
            return
        self._values[key] = value, size
        self.used += size
        while self.used > self.limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.used -= freed

    def clear(self) -> None:
        self._values.clear()
        self.used = 0
