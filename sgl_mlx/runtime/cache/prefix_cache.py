"""The slots of one pool, shared between cached prefixes and running requests.

Every slot is in exactly one place: free, owned by the tree, or held by a request. Under pressure
all unlocked cache is given up for requests (one pool, no fixed share for the cache). Evicted KV is
first offered to the second tier, if there is one.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sgl_mlx.runtime.cache.radix import PLAIN, Node, RadixTree
from sgl_mlx.runtime.cache.slots import SlotAllocator
from sgl_mlx.runtime.cache.tier import Grow, Load, Tier, Transfer

Reuse = Literal["prefixes", "whole prompts", "nothing"]
"""How much of earlier prompts is found again; all but "prefixes" are ablations."""


@dataclass
class Holding:
    """The slots of the pool that one request holds, for its tokens so far.

        table:   [ owned by the tree, locked through `node` | held by the request ]
                   0 ..................... shared .......................... len(table)

    Slots move from right to left: `PrefixCache.share` gives computed tokens to the tree; `whole`
    are those it was given last.
    """

    namespace: Hashable = PLAIN
    table: list[int] = field(default_factory=list)
    shared: int = 0
    node: Node | None = None
    whole: tuple[int, ...] = ()


class PrefixCache:
    """The tree and the slots of one pool; `seconds` is the time spent here.

    With `reuse="nothing"` no prefix is ever found: each holding is in a namespace of its own. With
    "whole prompts" only such are found as a holding ended with.

    Args:
        capacity: slots of the pool.
        most: slots that it may grow to, when requests need more than free slots and unlocked cache.
    """

    def __init__(
        self,
        capacity: int,
        reuse: Reuse = "prefixes",
        tier: Tier | None = None,
        most: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.most = capacity if most is None else most
        self._initial = capacity
        self.tier = tier
        self._transfers: list[Transfer] = []
        self._reuse = reuse
        self._ended: dict[int, set[int]] = {}  # hashes of whole prompts by length
        self.tree = RadixTree()
        self.slots = SlotAllocator(capacity)
        self.held = 0
        self.seconds = 0.0

    @property
    def available(self) -> int:
        """Slots that `extend` can hand out: free ones, unlocked cache, and room to grow."""
        return self.slots.free_count + self.tree.evictable + self.most - self.capacity

    @property
    def in_use(self) -> int:
        """Slots that open holdings have, one that several share counted once."""
        return self.capacity - self.slots.free_count - self.tree.evictable

    def open(self, tokens: tuple[int, ...], namespace: Hashable = PLAIN) -> Holding:
        """Start a holding with the longest cached prefix of `tokens`, locked."""
        started = time.perf_counter()
        if self._reuse == "nothing":
            namespace = object()
        elif self._reuse == "whole prompts":
            tokens = tokens[: self._longest_whole(tokens)]
        node, slots = self.tree.match(tokens, namespace)
        self.tree.lock(node)
        self.seconds += time.perf_counter() - started
        return Holding(namespace, slots, len(slots), node)

    def extend(self, holding: Holding, count: int) -> bool:
        """Append `count` slots to a holding, evicting as needed; False, unchanged, if too few."""
        if count > self.available:
            return False
        started = time.perf_counter()
        missing = count - self.slots.free_count
        if missing > self.tree.evictable:
            self._grow(missing - self.tree.evictable)
            missing = count - self.slots.free_count
        if missing > 0:
            self._evict(missing)
        holding.table += self.slots.alloc(count)
        self.held += count
        self.seconds += time.perf_counter() - started
        return True

    def trim(self, holding: Holding, length: int) -> None:
        """Free held slots beyond the first `length`; never cuts into the shared part."""
        assert holding.shared <= length <= len(holding.table)
        self._release(holding.table[length:])
        del holding.table[length:]

    def share(self, holding: Holding, tokens: tuple[int, ...]) -> None:
        """Give the computed tokens to the tree, which others may match from now on.

        Where the tree had the same tokens already, the duplicate slots are freed and the table
        points at the tree's. `tokens` are those of the first `len(tokens)` table entries.
        """
        started = time.perf_counter()
        length = len(tokens)
        present, (node, slots) = self.tree.insert(tokens, holding.table[:length], holding.namespace)
        duplicate = holding.table[holding.shared : present]
        self.held -= length - max(present, holding.shared)
        holding.table[:length] = slots
        self.tree.lock(node)
        if holding.node is not None:
            self.tree.unlock(holding.node)
        holding.node, holding.shared = node, length
        holding.whole = tokens
        self._release(duplicate)
        self.seconds += time.perf_counter() - started

    def close(self, holding: Holding) -> None:
        """End a holding: unlock its prefix, free the rest."""
        self._release(holding.table[holding.shared :])
        if holding.node is not None:
            self.tree.unlock(holding.node)
        if self._reuse == "whole prompts" and holding.whole:
            self._ended.setdefault(len(holding.whole), set()).add(hash(holding.whole))
        holding.table, holding.shared, holding.node, holding.whole = [], 0, None, ()

    def _longest_whole(self, tokens: tuple[int, ...]) -> int:
        """Find the length of the longest ended prompt that `tokens` begin with."""
        lengths = sorted((n for n in self._ended if n <= len(tokens)), reverse=True)
        return next((n for n in lengths if hash(tokens[:n]) in self._ended[n]), 0)

    def load(
        self, tokens: tuple[int, ...], namespace: Hashable, start: int, reading: int
    ) -> int | None:
        """Take KV of `tokens[start:]`, which a reading has, into the tree.

        Returns:
            How many tokens will be loaded before the next plan runs, 0 if the tree has them or
            lacks some before `start`; None, and nothing done, when there are too few slots.
        """
        holding = self.open(tokens, namespace)
        present = holding.shared
        missing = len(tokens) - present if present >= start else 0
        fits = self.extend(holding, missing)
        if fits and missing:
            slots = tuple(holding.table[present:])
            self._transfers.append(Load(slots, reading, present - start))
            self.share(holding, tokens)
        self.close(holding)
        return missing if fits else None

    def take_transfers(self) -> tuple[Transfer, ...]:
        """Hand over what must be moved before the next plan is computed."""
        taken = tuple(self._transfers)
        self._transfers.clear()
        return taken

    def spill(self) -> None:
        """Evict all cache that no request uses, into the second tier."""
        self._evict(self.tree.evictable)

    def flush(self) -> None:
        """Forget every cached prefix that no request uses; nothing is spilled."""
        self._transfers = [t for t in self._transfers if isinstance(t, Load)]
        if (
            self.capacity > self._initial
        ):  # the step that was to make the pool larger may have failed
            self._transfers.insert(0, Grow(self.capacity))
        self.slots.free(self.tree.evict(self.tree.evictable))

    def check(self, holdings: Iterable[Holding] = ()) -> None:
        """Assert that free + cached + held slots are all slots, each exactly once."""
        self.tree.check()
        self.slots.check()
        holdings = list(holdings)
        held = [slot for h in holdings for slot in h.table[h.shared :]]
        cached = list(self.tree.slots())
        assert len(held) == self.held
        everything = [*self.slots.free_slots(), *cached, *held]
        assert sorted(everything) == list(range(1, self.capacity + 1))
        for h in holdings:
            path = list(h.node.path())[::-1] if h.node else []
            assert h.table[: h.shared] == [slot for node in path for slot in node.slots]

    def _grow(self, missing: int) -> None:
        """Double the pool, or more if that is too little, up to `most` slots."""
        self.capacity = min(max(2 * self.capacity, self.capacity + missing), self.most)
        self.slots.grow(self.capacity)
        self._transfers.append(Grow(self.capacity))

    def _evict(self, count: int) -> None:
        self.slots.free(self.tree.evict(count, self._spill if self.tier else None))

    def _spill(self, node: Node, namespace: Hashable) -> None:
        assert self.tier is not None
        spill = self.tier.spill(node, namespace)
        if spill is not None:
            self._transfers.append(spill)

    def _release(self, slots: list[int]) -> None:
        self.held -= len(slots)
        self.slots.free(slots)
