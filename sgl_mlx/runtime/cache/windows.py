"""Slots of sequences in the layers with a sliding window, beside their slots in all other layers.

        slots of the tree, locked | slots of the sequence
        behind ................ shared ............... len(holding.table)

A sequence has no slots for tokens before its window, and takes slots for new tokens step by step.
When its computed tokens enter the tree, their slots do too; where the tree lacks slots for tokens
that it has, it takes the sequence's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.cache.node_windows import NodeWindows
from sgl_mlx.runtime.cache.radix import Node, RadixTree

_GRAIN = 4
"""Divisor of two limits.

An edge is split only if more than 1 / `_GRAIN` of a window's slots would be freed, so that edges
stay long. Slots are scarce while less than 1 / `_GRAIN` of them are available.
"""


@dataclass(frozen=True)
class WindowStats:
    """Counts of a cache's slots for layers with a sliding window, now unless said otherwise.

    Attributes:
        window_slots: slots of the pool.
        window_free: unused slots, without those that the pool may grow by.
        window_cached: slots of cached prefixes that can be evicted.
        window_evicted: slots of cached prefixes evicted since the start.
    """

    window_slots: int
    window_free: int
    window_cached: int
    window_evicted: int


class Windows:
    """The slots of one cache in layers with a sliding window: those of sequences and of the tree.

    Args:
        most: slots that the pool may grow to.
        on_grow: called with the new number of slots when the pool has to grow.

    Attributes:
        held: number of slots that sequences own.
        grown: True once the pool had to grow.
    """

    def __init__(self, tree: RadixTree, most: int, on_grow: Callable[[int], None]) -> None:
        assert tree.windows is not None, "a tree without windows"
        self.most = most
        self.held = 0
        self.grown = False
        self._tree = tree
        self._nodes: NodeWindows[Node] = tree.windows
        self._on_grow = on_grow

    @property
    def capacity(self) -> int:
        return self._nodes.slots.capacity

    @property
    def reach(self) -> int:
        """Number of tokens before a new token that the layers with a window read."""
        return self._nodes.reach

    @property
    def kept(self) -> int:
        """Number of tokens before a new token that keep slots while many slots are available."""
        return self._nodes.kept

    @property
    def available(self) -> int:
        """Number of slots that `reserve` can give: free ones, evictable ones and room to grow."""
        nodes = self._nodes
        return nodes.slots.free_count + nodes.evictable + self.most - self.capacity

    def stats(self) -> WindowStats:
        """Return the counts of this cache's window slots."""
        nodes = self._nodes
        return WindowStats(self.capacity, nodes.slots.free_count, nodes.evictable, nodes.evicted)

    def reusable(self, tokens: tuple[int, ...], node: Node, length: int) -> int:
        """Return how many of the first `length` tokens, which the tree has, can be reused.

        Args:
            node: the last node wholly inside these tokens, or a node above it.
        """
        while node.depth < length:
            node = node.children[tokens[node.depth]]
        return self._nodes.reusable(node, length)

    def begin(self, holding: Holding) -> None:
        """Lock the slots that a new holding, which has only shared tokens, is about to read."""
        self._lock(holding, 0)

    def reserve(self, holding: Holding, length: int) -> bool:
        """Take slots for further tokens of a holding, up to its token number `length`.

        Returns:
            True; False, with no change, if fewer slots are `available`.
        """
        count = length - holding.behind - len(holding.window)
        if count <= 0:
            return True
        if count > self.available:
            return False
        holding.window += self._take(count)
        self.held += count
        return True

    def restore(self, node: Node, start: int) -> list[int]:
        """Give a path slots for the tokens from `start` on that lack them; a transfer fills them.

        Args:
            node: the end of the path.

        Returns:
            For each token from `start` on its new slot, or 0 if it had one; [], with no change, if
            fewer slots are `available`.
        """
        locked_from = self._nodes.lock(node, start)
        parts = [(n, *_lacking(n, start)) for n in node.path() if n.depth > start]
        count = sum(end - first for _, first, end in parts)
        found = [0] * (node.depth - start) if count <= self.available else []
        if found:
            for n, first, end in parts:
                slots = found[first - start : end - start] = self._take(end - first)
                self._nodes.give(n, slots)
        self._nodes.unlock(node, locked_from)
        return found

    def share(self, holding: Holding, before: Node | None, owned: int) -> None:
        """Give the tree the slots of tokens that a holding shares now, and lock the slots it reads.

        Args:
            before: the holding's node before it shared the tokens; None if it had none.
            owned: how many of its tokens were shared already.
        """
        node, first = holding.node, max(owned, holding.behind)
        assert node is not None
        for n in node.path():
            if n.depth <= first:
                break
            start = max(n.depth - len(n.tokens), first) - holding.behind
            end = n.depth - holding.behind
            lacking = max(n.depth - len(n.window) - holding.behind, start)
            self._nodes.slots.free(holding.window[lacking:end])
            self._nodes.give(n, holding.window[start:lacking])
            self.held -= end - start
        locked_from = holding.locked_from
        self._lock(holding, holding.behind)
        if before is not None:
            self._nodes.unlock(before, locked_from)

    def mark(self, holding: Holding) -> None:
        """Keep the slots at the end of the shared tokens longer, as if a path branched there.

        Call it at the end of a prompt. The next prompt may go on from there, since it may leave out
        the reasoning in the answer.
        """
        if holding.node is not None:
            holding.node.window_end = True

    @property
    def short(self) -> bool:
        """True if the slots of cached prefixes are about to be freed for running sequences."""
        free = self._nodes.slots.free_count + self.most - self.capacity
        return free < self.capacity // _GRAIN

    def advance(self, holding: Holding, computed: int) -> None:
        """Free the slots of tokens that no step will read, given that `computed` tokens stay.

        Slots that only the second tier needs are kept while many slots are available.
        """
        many = self.available >= self.most // _GRAIN
        behind = computed - (self.kept if many else self.reach)
        if behind <= holding.behind:
            return
        passed = behind - holding.behind
        self._release(holding.window[max(holding.shared - holding.behind, 0) : passed])
        del holding.window[:passed]
        holding.behind = behind
        if holding.node is not None and holding.shared > holding.locked_from:
            self._cut(holding.node, behind)
            left = self._nodes.unlock(holding.node, holding.locked_from, behind)
            holding.locked_from = left

    def trim(self, holding: Holding, length: int) -> None:
        """Free a holding's slots for tokens beyond the first `length`."""
        kept = max(length - holding.behind, 0)
        self._release(holding.window[kept:])
        del holding.window[kept:]

    def close(self, holding: Holding) -> None:
        """Free all slots that a holding owns, and unlock the tree's slots that it reads."""
        self.trim(holding, holding.shared)
        if holding.node is not None:
            self._nodes.unlock(holding.node, holding.locked_from)
        holding.window, holding.behind, holding.locked_from = [], 0, 0

    def check(self, holdings: Iterable[Holding]) -> None:
        """Assert that every slot is free, a node's, or owned by one holding.

        Args:
            holdings: all open holdings.
        """
        holdings = list(holdings)
        owned = [x for h in holdings for x in h.window[max(h.shared - h.behind, 0) :]]
        nodes = list(self._tree.nodes())
        cached = [slot for node in nodes for slot in node.window]
        everything = [*self._nodes.slots.free_slots(), *cached, *owned]
        assert sorted(everything) == list(range(1, self.capacity + 1))
        assert self.held == len(owned)
        locks = Counter(id(n) for h in holdings for n in _locked(h))
        for node in nodes:
            assert node.window_locks == locks.get(id(node), 0)
        for h in holdings:
            assert len(h.window) <= len(h.table) - h.behind
            assert h.window[: max(h.shared - h.behind, 0)] == self._slots(h)

    def _cut(self, node: Node, behind: int) -> None:
        """Split the edge in which a window begins, if enough of its slots are before the window.

        Args:
            node: the end of the path.
            behind: number of tokens before the window.
        """
        for n in node.path():
            start = n.depth - len(n.tokens)
            if n.depth > behind >= start:
                passed = behind - max(start, n.depth - len(n.window))
                if passed > self.reach // _GRAIN:
                    self._tree.split(n, behind - start)
                return

    def _lock(self, holding: Holding, behind: int) -> None:
        """Lock the window slots that a holding reads of its shared tokens; list them in it.

        Args:
            behind: the fewest leading tokens that the holding does not read.
        """
        node, shared = holding.node, holding.shared
        assert node is not None
        own = holding.window[max(shared - holding.behind, 0) :]
        holding.behind = max(shared - self.reach, behind)
        self._cut(node, holding.behind)
        holding.locked_from = self._nodes.lock(node, holding.behind)
        holding.window = self._slots(holding) + own

    def _slots(self, holding: Holding) -> list[int]:
        """List the tree's slots of a holding's shared tokens inside the window."""
        wanted = max(holding.shared - holding.behind, 0)
        found: list[int] = []
        for n in reversed(_locked(holding)):
            found += n.window
        assert len(found) >= wanted, "slots inside a window were freed"
        return found[len(found) - wanted :]

    def _take(self, count: int) -> list[int]:
        """Take `count` slots, of which there are enough: free ones, new ones or evicted ones."""
        nodes = self._nodes
        lacking = count - nodes.slots.free_count - nodes.evictable
        if lacking > 0:
            self.grown = True
            nodes.slots.grow(min(max(2 * self.capacity, self.capacity + lacking), self.most))
            self._on_grow(self.capacity)
        nodes.evict(count)
        return nodes.slots.alloc(count)

    def _release(self, slots: list[int]) -> None:
        self._nodes.slots.free(slots)
        self.held -= len(slots)


def _lacking(node: Node, start: int) -> tuple[int, int]:
    """Return the range `(first, end)` of a node's tokens from `start` on without window slots."""
    owned = node.depth - len(node.window)
    first = max(node.depth - len(node.tokens), start)
    return first, max(first, owned)


def _locked(holding: Holding) -> list[Node]:
    """List the nodes whose slots a holding locks, upwards."""
    path = holding.node.path() if holding.node is not None else ()
    return [n for n in path if n.depth - len(n.tokens) >= holding.locked_from]
