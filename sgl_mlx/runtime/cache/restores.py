"""Restores: prefixes being read from the second tier (the disk cache) back into the radix tree.

A sequence with blocks of its prompt in the second tier waits until another thread has read them;
other sequences may start meanwhile. Sequences that need the same blocks share one reading. The
blocks enter the tree when the sequence starts. Blocks that cannot be read are computed instead.

With recurrent layers, a restore reads a snapshot and the blocks before it; with layers that have
window slots, the last blocks of these layers too.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from sgl_mlx.runtime.cache.loads import load_blocks, load_snapshot, load_window
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.radix import PLAIN, common_prefix
from sgl_mlx.runtime.cache.state_tier import StateTier
from sgl_mlx.runtime.cache.tier import Reading, Tier
from sgl_mlx.runtime.cache.window_tier import WindowTier


@dataclass(eq=False)
class Restore:
    """A restore of `tokens[start:]` from the second tier, for all sequences that wait for it.

    Attributes:
        start: number of leading tokens that need not be read, because the tree has them.
        reading: the reading of blocks of KV; None if no block is to be read.
        end: the reading of what a sequence needs to go on after `tokens` (`Found.end`); None if it
            needs KV alone.
        ends: number of blocks or snapshots that `end` must have.
    """

    tokens: tuple[int, ...] = ()
    namespace: Hashable = PLAIN
    start: int = 0
    reading: Reading | None = None
    end: Reading | None = None
    ends: int = 0

    @property
    def readings(self) -> list[Reading]:
        return [reading for reading in (self.reading, self.end) if reading is not None]

    @property
    def done(self) -> bool:
        return all(reading.done for reading in self.readings)


class Restores:
    """All restores whose tokens have not entered the tree yet; used by admission and prefetches.

    `tokens` counts the tokens restored so far.
    """

    def __init__(self, cache: PrefixCache, tier: Tier) -> None:
        self._cache = cache
        self._tier = tier
        self._active: list[Restore] = []
        self.tokens = 0

    def begin(self, tokens: tuple[int, ...], namespace: Hashable) -> Restore | None:
        """Start to read the blocks of a prompt that the tree lacks, or join a restore that does so.

        Returns:
            The restore, already done if there is nothing to read; None if other restores must
            finish first, so that all together fit into the pool.
        """
        tier = self._tier
        cached, _ = self._cache.reusable(tokens, namespace, len(tokens))
        for other in self._active:
            shared = common_prefix(other.tokens, tokens, 0)
            if other.end is not None and shared < len(other.tokens):
                shared = 0  # `other` reads the state or window at its own end, which is no use here
            if other.namespace == namespace and shared - cached >= tier.worthwhile:
                return other
        ends = self._cache.state_tier or self._cache.window_tier
        if ends is not None:
            return self._begin_whole(ends, tokens, namespace, cached)
        start = cached // tier.size * tier.size
        keys = tier.find(tokens, namespace, cached)
        end = start + len(keys) * tier.size
        if not keys:
            return Restore()
        if not self._has_room(end - start):
            return None
        return self._add(Restore(tokens[:end], namespace, start, tier.store.read(keys)))

    def _begin_whole(
        self,
        ends: StateTier | WindowTier,
        tokens: tuple[int, ...],
        namespace: Hashable,
        reusable: int,
    ) -> Restore | None:
        """Begin to restore a prefix as a whole, since sequences can go on only from its end.

        Returns the restore; None if the pool has no room for it now.
        """
        cached, _ = self._cache.tree.match_length(tokens, namespace)
        found = ends.find(tokens, namespace, reusable, cached)
        if found is None:
            return Restore()
        if not self._has_room(found.length - found.start):
            return None
        read = self._tier.store.read
        blocks = read(found.blocks) if found.blocks else None
        prefix = tokens[: found.length]
        end = read(found.end)
        return self._add(Restore(prefix, namespace, found.start, blocks, end, len(found.end)))

    def _has_room(self, count: int) -> bool:
        return not self._active or self._under_way + count <= self._cache.available

    def _add(self, restore: Restore) -> Restore:
        self._active.append(restore)
        return restore

    def finish(self, restore: Restore) -> None:
        """Add the tokens of a done restore to the tree; later calls with it do nothing.

        While the pool has no room for its KV, nothing happens, and a later call tries again.
        """
        if restore not in self._active or not restore.done:
            return
        if restore.reading is not None and not self._load_blocks(restore, restore.reading):
            return
        if restore.end is not None:
            self._load_end(restore, restore.end)
        self._active.remove(restore)

    def _load_blocks(self, restore: Restore, reading: Reading) -> bool:
        end = restore.start + reading.count * self._tier.size
        tokens = restore.tokens[:end]
        start, namespace = restore.start, restore.namespace
        loaded = load_blocks(self._cache, tokens, namespace, start, reading.id)
        self._count(reading, loaded or 0, loaded == 0)
        return loaded is not None

    def _load_end(self, restore: Restore, reading: Reading) -> None:
        """Add a snapshot or a window to the tree, or drop it if slots or blocks are missing."""
        cache, states, windows = self._cache, self._cache.state_tier, self._cache.window_tier
        tokens, namespace, loaded = restore.tokens, restore.namespace, None
        if reading.count == restore.ends and states is not None:
            loaded = load_snapshot(cache, states, tokens, namespace, reading.id)
        elif reading.count == restore.ends and windows is not None:
            found = load_window(cache, windows, tokens, namespace, reading.id)
            loaded = 0 if found else None
        self._count(reading, loaded or 0, loaded is None)

    def _count(self, reading: Reading, loaded: int, useless: bool) -> None:
        self.tokens += loaded
        if useless:
            self._tier.store.drop(reading.id)

    def keep(self, wanted: Collection[Restore | None]) -> None:
        """Drop all restores that have not entered the tree and are not in `wanted`."""
        for restore in self._active:
            if restore not in wanted:
                for reading in restore.readings:
                    self._tier.store.drop(reading.id)
        self._active = [restore for restore in self._active if restore in wanted]

    @property
    def _under_way(self) -> int:
        return sum(len(r.tokens) - r.start for r in self._active)
