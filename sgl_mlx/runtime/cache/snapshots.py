"""Recurrent states of running sequences, and how they become snapshots in the radix tree.

Every running sequence owns one state slot, which its steps write. A step reads the same slot, or
the slot of the snapshot from which the sequence starts. Reading one slot and writing another forks
the state without a copy.

        state of the source ── read ──> first step ── write ──> own state
        own state           ── read ──> next step  ── write ──> own state

To keep a snapshot, a sequence gives its own slot to the tree, takes a fresh one, and reads from the
snapshot in its next step.

A step that verifies a draft writes the state after all drafted tokens, which is right only if all
are accepted. It writes to another slot than the sequence's own. If all are accepted, the sequence
owns that slot from then on; if not, it computes its accepted tokens again, from the state before
the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.cache.radix import Node, OnEvict, RadixTree


@dataclass(frozen=True)
class SnapshotStats:
    """Counts of a cache's recurrent states, since the start unless "now" is said.

    Attributes:
        snapshots_taken: snapshots that entered the tree.
        snapshots_skipped: snapshots not taken because no slot was free.
        snapshots_evicted: snapshots that left the tree.
        snapshots: snapshots in the tree now.
        states_running: state slots of running requests now.
        states_free: unused state slots now, without those that the pool may grow by.
    """

    snapshots_taken: int
    snapshots_skipped: int
    snapshots_evicted: int
    snapshots: int
    states_running: int
    states_free: int


class Snapshots:
    """The recurrent states of one cache: those of running sequences, and snapshots in the tree.

    Args:
        most: slots that the pool may grow to.
        on_grow: called with the new number of slots when the pool has to grow.
        on_evict: called with a node whose state is about to be evicted; None for nothing.

    Attributes:
        taken: number of snapshots that entered the tree so far.
        skipped: number of snapshots not taken because no slot was free.
        held: number of slots that sequences own.
        grown: True once the pool had to grow.
    """

    def __init__(
        self,
        tree: RadixTree,
        most: int,
        on_grow: Callable[[int], None],
        on_evict: OnEvict | None = None,
    ) -> None:
        assert tree.states is not None, "a tree without states has no snapshots"
        self._tree = tree
        self._states = tree.states
        self._most = most
        self._on_grow = on_grow
        self._on_evict = on_evict
        self.grown = False
        self.taken = self.skipped = self.held = 0

    @property
    def capacity(self) -> int:
        return self._states.slots.capacity

    @property
    def cached(self) -> int:
        """Number of snapshots in the tree."""
        return self._states.cached

    def stats(self) -> SnapshotStats:
        """Return the counts of this cache's recurrent states."""
        return SnapshotStats(
            snapshots_taken=self.taken,
            snapshots_skipped=self.skipped,
            snapshots_evicted=self._states.evicted,
            snapshots=self.cached,
            states_running=self.held,
            states_free=self._states.slots.free_count,
        )

    def begin(self, holding: Holding) -> bool:
        """Give a new holding a state slot; return False, with no change, if none can be freed.

        The next step reads the snapshot at the end of the cached prefix, if there is a prefix. If
        only the slot of this snapshot can be freed, and no other sequence is about to read it, the
        holding takes this slot.
        """
        source = holding.node if holding.shared else None
        if source is not None:
            self._states.pin(source)
        holding.state, holding.source = self._take(), source
        if not holding.state:
            self._unpin(holding)
        if not holding.state and source is not None and not source.readers:
            self._take_over(holding, source)
        return bool(holding.state)

    def adopt(self, holding: Holding) -> bool:
        """Give a holding a slot that a transfer will fill; return False if none can be freed."""
        holding.state = self._take()
        holding.ready = bool(holding.state)
        return holding.ready

    def advanced(self, holding: Holding, final: bool, cut: bool) -> None:
        """Record that a step has written the holding's state.

        Args:
            final: False if the step may still be undone, together with its decode epoch.
            cut: True to make the state a snapshot; it must be the state after the shared tokens.
        """
        if holding.beside is not None:
            return  # a draft is being verified: `verified` will tell whether the state is right
        holding.ready = True
        if final:
            self.settle(holding)
        if cut:
            self.keep(holding)

    def draft(self, holding: Holding) -> bool:
        """Let the next step verify a draft; return False, with no change, if no slot is free.

        No snapshot is evicted for a draft.
        """
        if holding.ready:
            if not self._states.slots.free_count and self.capacity >= self._most:
                return False
            holding.beside = self._take()
        else:
            holding.beside = 0
        return True

    def verified(self, holding: Holding, whole: bool) -> None:
        """After a step that verified a draft, keep its state if the `whole` draft was accepted.

        If not, keep the state from before the step. Does nothing if the step verified no draft.
        """
        beside, holding.beside = holding.beside, None
        if beside:
            unused = holding.state if whole else beside
            holding.state = beside if whole else holding.state
            self._states.slots.free([unused])
            self.held -= 1
        if whole and beside is not None:
            self.advanced(holding, final=True, cut=False)

    def settle(self, holding: Holding) -> None:
        """Unpin the snapshot that a step read, now that the step cannot be undone."""
        if holding.ready:
            self._unpin(holding)

    def keep(self, holding: Holding) -> bool:
        """Snapshot the state at the end of the shared tokens; the sequence goes on from it.

        Returns:
            True; False, with no change, if the tree has this state already or no slot can be freed.
        """
        node = holding.node
        assert holding.ready, "the state is not computed yet"
        assert node is not None, "no tokens were shared yet"
        if node.state:
            return False
        fresh = self._take()
        if not fresh:
            self.skipped += 1
            return False
        self._put(node, holding)
        self._states.pin(node)
        holding.state, holding.ready, holding.source = fresh, False, node
        return True

    def end(self, holding: Holding, keep: bool = False) -> None:
        """Take a holding's state slot away and free it.

        With `keep`, a `ready` state becomes a snapshot at the end of the shared tokens instead, if
        the tree has none there.
        """
        self.verified(holding, whole=False)
        self._unpin(holding)
        node = holding.node
        if keep and holding.ready and node is not None and holding.shared and not node.state:
            self._put(node, holding)
        elif holding.state:
            self._free(holding)
        holding.state, holding.ready = 0, False

    def evict_all(self) -> None:
        """Give up all snapshots that no sequence is about to read."""
        while self._tree.evict_state():
            pass

    def check(self, holdings: Iterable[Holding]) -> None:
        """Assert that every state slot is free, a snapshot, or owned by one holding.

        Args:
            holdings: all open holdings.
        """
        owners = [h for h in holdings if h.state]
        cached = [node.state for node in self._tree.nodes() if node.state]
        held = [slot for h in owners for slot in (h.state, h.beside) if slot]
        everything = [*self._states.slots.free_slots(), *cached, *held]
        assert sorted(everything) == list(range(1, self.capacity + 1))
        assert self.held == len(held)
        readers = Counter(id(h.source) for h in owners if h.source is not None)
        for node in self._tree.nodes():
            assert node.readers == readers.get(id(node), 0)
            assert node.state or not node.readers
        for h in owners:
            path = h.node.path() if h.node is not None else ()
            assert h.source is None or h.source in path

    def _take(self) -> int:
        slots = self._states.slots
        if not slots.free_count and self.capacity < self._most:
            self.grown = True
            slots.grow(min(2 * self.capacity, self._most))
            self._on_grow(self.capacity)
        if not slots.free_count and not self._tree.evict_state(self._on_evict):
            return 0
        self.held += 1
        return slots.alloc(1)[0]

    def _take_over(self, holding: Holding, source: Node) -> None:
        holding.state, holding.ready = self._states.release(source), True
        self.held += 1

    def _put(self, node: Node, holding: Holding) -> None:
        self._states.put(node, holding.state)
        self.held -= 1
        self.taken += 1

    def _free(self, holding: Holding) -> None:
        self._states.slots.free([holding.state])
        self.held -= 1

    def _unpin(self, holding: Holding) -> None:
        if holding.source is not None:
            self._states.unpin(holding.source)
            holding.source = None
