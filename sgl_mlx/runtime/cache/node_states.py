"""Slots of recurrent state, and which of them the nodes of a radix tree own.

A recurrent layer keeps one state for a whole sequence, whatever its length. A slot holds the
states of all recurrent layers after one prefix. A node owns at most one slot: a snapshot of the
state at its end. Snapshots that no sequence is about to read are evicted, least recently used
first. A match marks all nodes of a path as used at the same time. Of the snapshots on one path,
those at nodes with one child go first, then that at the leaf, then those where the path branches.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sized
from typing import Generic, Protocol, TypeVar

from sgl_mlx.runtime.cache.slots import SlotAllocator

_Rank = tuple[int, int, int]


class Owner(Protocol):
    """The interface of a radix tree's node; see `radix.Node`."""

    state: int
    readers: int
    last_used: int
    depth: int

    @property
    def children(self) -> Sized:
        """The nodes below."""
        ...


N = TypeVar("N", bound=Owner)


class NodeStates(Generic[N]):
    """The state slots of one pool, and the snapshots among them. Slot 0 is never given out.

    Args:
        capacity: number of slots, for running sequences and snapshots together.

    Attributes:
        cached: number of snapshots in nodes.
        evicted: number of snapshots given up so far.
    """

    def __init__(self, capacity: int) -> None:
        self.slots = SlotAllocator(capacity)
        self.cached = 0
        self.evicted = 0
        self._heap: list[tuple[_Rank, int, N]] = []  # stale entries are skipped

    def put(self, node: N, slot: int) -> None:
        """Make the state in `slot` the snapshot of a node that has none."""
        assert not node.state, "a node has one state"
        node.state = slot
        self.cached += 1
        self.offer(node)

    def release(self, node: N) -> int:
        """Take away and return a node's slot; no sequence may be about to read the node's state."""
        assert node.state, "no state to take"
        assert not node.readers, "a state that will be read"
        slot, node.state = node.state, 0
        self.cached -= 1
        self.evicted += 1
        self._drop_stale()
        return slot

    def drop(self, node: N) -> None:
        """Free a node's slot; no sequence may be about to read the node's state."""
        self.slots.free([self.release(node)])

    def removed(self, node: N, parent: N) -> None:
        """Update the snapshots after a child was removed: drop that of `node`, rank `parent`."""
        if node.state:
            self.drop(node)
        if parent.state:
            self.offer(parent)

    def pin(self, node: N) -> None:
        """Keep a node's state from eviction; each call needs its own `unpin`."""
        assert node.state, "no state to read"
        node.readers += 1

    def unpin(self, node: N) -> None:
        assert node.readers > 0, "unpin without pin"
        node.readers -= 1
        self.offer(node)

    def least_needed(self) -> N | None:
        """Take from the queue, and return, the node whose state should be evicted next.

        Returns None if no state may be evicted.
        """
        while self._heap:
            rank, _, node = heapq.heappop(self._heap)
            if not node.state or node.readers:
                continue
            if rank == _rank(node):
                return node
            self.offer(node)
        return None

    def offer(self, node: N) -> None:
        """Queue a node with a state for eviction, after a change of its rank or its readers."""
        if node.state and not node.readers:
            heapq.heappush(self._heap, (_rank(node), id(node), node))
        self._drop_stale()

    def check(self, nodes: Iterable[N]) -> None:
        """Assert that counts agree and that every snapshot that may be evicted is queued for it."""
        self.slots.check()
        owners = [node for node in nodes if node.state]
        queued = {id(node) for _, _, node in self._heap}
        assert len({node.state for node in owners}) == len(owners) == self.cached
        assert all(node.readers or id(node) in queued for node in owners)
        assert len(self._heap) <= 4 * self.cached + 64, "stale entries pile up"

    def _drop_stale(self) -> None:
        if len(self._heap) > 4 * self.cached + 64:
            live = {id(n): n for _, _, n in self._heap if n.state and not n.readers}
            self._heap = [(_rank(n), key, n) for key, n in live.items()]
            heapq.heapify(self._heap)


def _rank(node: Owner) -> _Rank:
    """Return a node's place in the order of eviction; lower places go first.

    The number of children and the depth decide between nodes of one path, whose `last_used` may be
    the same.
    """
    branches = (1, 0, 2)[min(len(node.children), 2)]
    return node.last_used, branches, node.depth
