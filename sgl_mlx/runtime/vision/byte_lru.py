"""A cache bounded by bytes, which evicts the least recently used value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLRU(Generic[K, V]):
    """Least-recently-used cache bounded by bytes; not thread-safe.

    Args:
        limit: largest size of all values together, in bytes.

    Attributes:
        used: size of all values now, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Return a value and mark it as used; None if it is not in the cache."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Store a value of `size` bytes, and evict other values to make room.

        A value larger than the limit is not stored; an older value of the same key is removed.
        """
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
