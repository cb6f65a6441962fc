"""Slots of the layers with a sliding window, and which of them the nodes of a radix tree own.

These layers read only the last tokens before a new one, so a token needs a slot in them only for a
while. A node owns such slots for the last tokens of its edge: for all, some or none of them. A
prefix can be reused only where the tokens before its end still have slots.

With a second tier (the disk cache), which keeps windows in whole blocks, a node owns some more
slots before places where prompts go on, so that the last blocks before such a place are whole when
their slots are freed.

A node is locked while a sequence reads its slots. The slots of unlocked nodes are freed when
sequences need slots: first those that would be read only by a prompt that leaves the path at a new
place, then the least recently used.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from sgl_mlx.runtime.cache.slots import SlotAllocator

_Rank = tuple[int, int, int, int]


class Owner(Protocol):
    """The interface of a radix tree's node; see `radix.Node`."""

    tokens: tuple[int, ...]
    window: list[int]
    window_locks: int
    window_end: bool | None
    last_used: int
    depth: int

    @property
    def children(self: N) -> Mapping[int, N]:
        """The nodes below."""
        ...

    def path(self: N) -> Iterator[N]:
        """Yield this node and those above it, upwards."""
        ...


N = TypeVar("N", bound=Owner)


class NodeWindows(Generic[N]):
    """The slots of one pool in layers with a sliding window; some of them belong to nodes.

    Slot 0 is never given out.

    Args:
        capacity: number of slots, for running sequences and nodes together.
        reach: number of tokens before a new token that a layer with a window reads.
        more: number of tokens beyond `reach` that also keep slots before places where prompts go
            on, for the second tier.
        on_evict: called with a node before slots are freed without which no sequence can go on
            after this node; None for nothing.

    Attributes:
        kept: number of tokens with slots before a place where prompts go on: `reach` + `more`.
        evictable: number of slots of unlocked nodes.
        locked: number of slots of locked nodes.
        evicted: number of slots of nodes that were freed for sequences so far.
    """

    def __init__(
        self,
        capacity: int,
        reach: int,
        more: int = 0,
        on_evict: Callable[[N], None] | None = None,
    ) -> None:
        self.slots = SlotAllocator(capacity)
        self.reach = reach
        self.kept = reach + more
        self._on_evict = on_evict
        self.evictable = self.locked = self.evicted = 0
        self._heap: list[tuple[_Rank, int, N]] = []  # stale entries are skipped
        self._owners = 0

    def reusable(self, node: N, length: int) -> int:
        """Return the length of the longest prefix, at most `length`, that a sequence can continue.

        Args:
            node: the node in whose edge, or at whose end, the first `length` tokens end.
        """
        for n in node.path():
            start, first = n.depth - len(n.tokens), n.depth - len(n.window)
            if start < length and max(length - self.reach, 0) < first:
                if first > start:
                    length = start
                continue
            if start < length:
                break
        return length

    def give(self, node: N, slots: list[int]) -> None:
        """Give a node slots for more tokens, just before the tokens whose slots it owns."""
        if not slots:
            return
        self._owners += not node.window
        node.window = slots + node.window
        self._count(node, len(slots))
        for n in node.path():  # a new end below changes the ranks of those just above
            if n.depth + self.kept < node.depth - len(node.tokens):
                break
            self.offer(n)

    def lock(self, node: N, start: int) -> int:
        """Keep the slots of the tokens from `start` to a node's end; other slots may be kept too.

        Returns:
            The number of tokens before the first locked node, for `unlock`.
        """
        first = node.depth
        for n in node.path():
            if n.depth <= start:
                break
            if not n.window_locks:
                self._move(len(n.window))
            n.window_locks += 1
            first = n.depth - len(n.tokens)
        return first

    def unlock(self, node: N, first: int, until: int | None = None) -> int:
        """Undo a `lock` that returned `first`, for the nodes that end at `until` or before.

        Args:
            until: number of tokens; None unlocks all nodes.

        Returns:
            The number of tokens before the first node that is still locked; if none is, up to the
            end of `node`.
        """
        left = node.depth
        for n in node.path():
            start = n.depth - len(n.tokens)
            if start < first:
                break
            if until is not None and n.depth > until:
                left = start
                continue
            assert n.window_locks > 0, "unlock without lock"
            n.window_locks -= 1
            if not n.window_locks:
                self._move(-len(n.window))
                self.offer(n)
        return left

    def split(self, upper: N, lower: N) -> None:
        """Divide the slots of `lower`, whose edge was split, between it and the new `upper`."""
        upper.window_locks = lower.window_locks
        count = max(len(lower.window) - len(lower.tokens), 0)
        if count:
            upper.window, lower.window = lower.window[:count], lower.window[count:]
            self._owners += 1
        self.offer(upper)
        self.offer(lower)

    def removed(self, node: N, parent: N) -> None:
        """Free the slots of an unlocked node that was removed from below `parent`."""
        self._free(node, len(node.window))
        if not parent.window_end:
            parent.window_end = bool(parent.children)
        self.offer(parent)

    def evict(self, count: int) -> None:
        """Free slots of unlocked nodes until `count` slots are free or there are no more."""
        while self.slots.free_count < count and self._heap:
            rank, _, node = heapq.heappop(self._heap)
            if not node.window or node.window_locks:
                continue
            if rank != self._rank(node):
                self.offer(node)
                continue
            # the slots of a reusable end serve only together: all of them go, or none
            missing = count - self.slots.free_count
            going = min(self._spare(node), missing)
            if not going:
                going = len(node.window)
                if self._on_evict is not None:
                    self._on_evict(self._below(node)[0])
            self.evicted += going
            self._free(node, going)
            self.offer(node)

    def offer(self, node: N) -> None:
        """Queue a node's slots for eviction, after a change of its rank or its locks."""
        if node.window and not node.window_locks:
            heapq.heappush(self._heap, (self._rank(node), id(node), node))
        if len(self._heap) > 4 * self._owners + 64:
            live = {id(n): n for _, _, n in self._heap if n.window and not n.window_locks}
            self._heap = [(self._rank(n), key, n) for key, n in live.items()]
            heapq.heapify(self._heap)

    def check(self, nodes: Iterable[N]) -> None:
        """Assert that counts agree and all slots that may be freed are queued for it."""
        self.slots.check()
        queued = {id(node) for _, _, node in self._heap}
        owners = [node for node in nodes if node.window]
        assert len(owners) == self._owners
        assert all(len(node.window) <= len(node.tokens) for node in owners)
        assert all(node.window_locks or id(node) in queued for node in owners)
        assert self.locked == sum(len(node.window) for node in owners if node.window_locks)
        assert self.evictable == sum(len(n.window) for n in owners if not n.window_locks)
        assert len(self._heap) <= 4 * self._owners + 64, "stale entries pile up"

    def _rank(self, node: N) -> _Rank:
        """Return a node's place in the order of eviction; lower places go first.

        Nodes of one path may have the same `last_used`. Of these, the nodes before the leaf go
        first, then the nodes before places where the path branches; upper nodes go before lower
        ones.
        """
        end, _ = self._below(node)
        branches = end.window_end or len(end.children) > 1
        return not self._spare(node), node.last_used, branches, node.depth

    def _spare(self, node: N) -> int:
        """Count the slots of a node that no sequence would read to go on from this path.

        A sequence continues at a leaf or where the path branches, or one token before that place,
        because it computes at least one token.
        """
        _, distance = self._below(node)
        return max(len(node.window) - max(self.kept + 1 - distance, 0), 0)

    def _below(self, node: N) -> tuple[N, int]:
        """Return the next leaf or branch at a node's end or below, and its distance in tokens.

        A `window_end` counts as a branch. The search ends after `kept + 1` tokens.
        """
        distance = 0
        while len(node.children) == 1 and not node.window_end and distance <= self.kept:
            (node,) = node.children.values()
            distance += len(node.tokens)
        return node, distance

    def _free(self, node: N, count: int) -> None:
        """Free a node's first `count` slots; the node is not locked."""
        if count:
            self.slots.free(node.window[:count])
            node.window = node.window[count:]
            self.evictable -= count
            self._owners -= not node.window

    def _count(self, node: N, slots: int) -> None:
        if node.window_locks:
            self.locked += slots
        else:
            self.evictable += slots

    def _move(self, slots: int) -> None:
        """Move `slots` from the count `evictable` to `locked`; a negative number moves back."""
        self.locked += slots
        self.evictable -= slots
