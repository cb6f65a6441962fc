"""Restores: prefixes being read from the second tier (the disk cache) back into the radix tree.

A sequence with blocks of its prompt in the second tier waits until another thread has read them;
other sequences may start meanwhile. Sequences that need the same blocks share one reading. The
blocks enter the tree when the sequence starts. Blocks that cannot be read are computed instead.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import PLAIN, common_prefix
from sgl_mlx.runtime.cache.tier import Reading, Tier


@dataclass(eq=False)
class Restore:
    """A reading of the KV of `tokens[start:]`; `reading` is None if there is nothing to restore."""

    tokens: tuple[int, ...] = ()
    namespace: Hashable = PLAIN
    start: int = 0
    reading: Reading | None = None

    @property
    def done(self) -> bool:
        return self.reading is None or self.reading.done


class Restores:
    """All unfinished restores. `tokens` counts the tokens restored so far."""

    def __init__(self, cache: PrefixCache, tier: Tier) -> None:
        self._cache = cache
        self._tier = tier
        self._active: list[Restore] = []
        self.tokens = 0

    def begin(self, tokens: tuple[int, ...], namespace: Hashable) -> Restore | None:
        """Start to read the blocks of a prompt that the tree lacks, or join a restore of the same.

        Returns:
            The restore, already done if there is nothing to read; None if other restores must
            finish first, so that all together fit into the pool.
        """
        tier = self._tier
        cached, _ = self._cache.tree.match_length(tokens, namespace)
        for other in self._active:
            shared = common_prefix(other.tokens, tokens, 0)
            if other.namespace == namespace and shared - cached >= tier.worthwhile:
                return other
        start = cached // tier.size * tier.size
        keys = tier.find(tokens, namespace, cached)
        end = start + len(keys) * tier.size
        if not keys:
            return Restore()
        if self._active and self._under_way + end - start > self._cache.available:
            return None
        restore = Restore(tokens[:end], namespace, start, tier.store.read(keys))
        self._active.append(restore)
        return restore

    def finish(self, restore: Restore) -> None:
        """Add a done restore's KV to the tree, once; do nothing while the pool has no room."""
        reading = restore.reading
        if restore not in self._active or reading is None or not reading.done:
            return
        end = restore.start + reading.count * self._tier.size
        tokens = restore.tokens[:end]
        loaded = self._cache.load(tokens, restore.namespace, restore.start, reading.id)
        if loaded is None:
            return
        self.tokens += loaded
        self._active.remove(restore)
        if not loaded:
            self._tier.store.drop(reading.id)

    def keep(self, wanted: Collection[Restore | None]) -> None:
        """Drop all unfinished restores that are not in `wanted`."""
        for restore in self._active:
            if restore not in wanted and restore.reading is not None:
                self._tier.store.drop(restore.reading.id)
        self._active = [restore for restore in self._active if restore in wanted]

    @property
    def _under_way(self) -> int:
        return sum(len(r.tokens) - r.start for r in self._active)
