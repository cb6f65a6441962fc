"""The prefix cache: divides the slots of one KV pool between cached prefixes and sequences.

Every slot is free, owned by the radix tree, or held by a sequence. The cache has no fixed share:
when sequences need slots, unlocked prefixes are evicted. Evicted KV is first offered to the second
tier (the disk cache), if there is one.

For a model with recurrent layers, `snapshots` divides the slots of recurrent states in the same
way, and a prefix is reused only up to a snapshot. `windows` does so for the slots of layers with a
sliding window, and a prefix is reused only where its last tokens still have such slots.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import Literal, NamedTuple

from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.cache.node_states import NodeStates
from sgl_mlx.runtime.cache.node_windows import NodeWindows
from sgl_mlx.runtime.cache.radix import PLAIN, Node, RadixTree
from sgl_mlx.runtime.cache.slots import SlotAllocator
from sgl_mlx.runtime.cache.snapshots import Snapshots
from sgl_mlx.runtime.cache.state_tier import StateTier
from sgl_mlx.runtime.cache.tier import (
    Grow,
    GrowStates,
    GrowWindows,
    Load,
    LoadState,
    Tier,
    Transfer,
)
from sgl_mlx.runtime.cache.window_tier import WindowTier, extra_tokens
from sgl_mlx.runtime.cache.windows import Windows

Reuse = Literal["prefixes", "whole prompts", "nothing"]
"""How much of earlier prompts is reused; all values but "prefixes" only measure what it saves."""


class WindowSlots(NamedTuple):
    """Numbers of slots for layers with a sliding window.

    Attributes:
        window: tokens that such a layer attends to, at least 2: a token and those before it.
        first: slots of the pool at the start.
        most: slots that the pool may grow to.
    """

    window: int
    first: int
    most: int


class PrefixCache:
    """The radix tree and the slots of one KV pool, used by the scheduler.

    Args:
        capacity: slots of the pool at the start.
        reuse: "prefixes" finds any cached prefix; "whole prompts" only a prefix that consists of
            all the tokens of an ended sequence; "nothing" never finds a prefix.
        tier: the second tier, to which evicted prefixes are offered; None for none.
        state_tier: the snapshots of the second tier; None for no tier, or for attention alone.
        most: slots that the pool may grow to when free and evictable slots do not suffice; None
            for no growth.
        states: most slots for recurrent states; 0 for a model of attention alone.
        first_states: how many of these slots there are at the start; None for all.
        windows: slots for layers with a sliding window; None if all layers share one set of slots.

    Attributes:
        snapshots: the recurrent states; None for a model of attention alone.
        windows: the slots for layers with a sliding window; None if there are none of their own.
        window_tier: the KV of these layers in the second tier; None without a tier, or without such
            layers.
        held: number of slots that sequences hold and the tree does not own.
        seconds: time spent in `open`, `extend` and `share`.
    """

    def __init__(
        self,
        capacity: int,
        reuse: Reuse = "prefixes",
        tier: Tier | None = None,
        most: int | None = None,
        states: int = 0,
        first_states: int | None = None,
        state_tier: StateTier | None = None,
        windows: WindowSlots | None = None,
    ) -> None:
        assert windows is None or not states, "not supported together"
        self.capacity = capacity
        self.most = capacity if most is None else most
        self._initial = capacity
        self.tier = tier
        self.state_tier = state_tier
        self._transfers: list[Transfer] = []
        self._reuse = reuse
        self._ended: dict[int, set[int]] = {}  # hashes of whole prompts by length
        first = states if first_states is None else min(first_states, states)
        self.windows: Windows | None = None
        self.window_tier: WindowTier | None = None
        if windows is not None and tier is not None:
            self.window_tier = WindowTier(tier, windows.window - 1)
        owned = NodeStates[Node](first) if states else None
        self.tree = RadixTree(owned, None if windows is None else self._node_windows(windows))
        if windows is not None:
            self.windows = Windows(self.tree, windows.most, self._grow_windows)
        self.snapshots: Snapshots | None = None
        if states:
            on_evict = self._spill_state if state_tier else None
            self.snapshots = Snapshots(self.tree, states, self._grow_states, on_evict)
        self.slots = SlotAllocator(capacity)
        self.held = 0
        self.seconds = 0.0

    @property
    def available(self) -> int:
        """Number of slots that `extend` can give: free ones, evictable ones and room to grow."""
        return self.slots.free_count + self.tree.evictable + self.most - self.capacity

    @property
    def in_use(self) -> int:
        """Number of slots in open holdings; a slot in several holdings counts once."""
        return self.capacity - self.slots.free_count - self.tree.evictable

    def open(self, tokens: tuple[int, ...], namespace: Hashable = PLAIN) -> Holding:
        """Return a new holding with the longest cached prefix of `tokens`, which it locks.

        With recurrent layers, only prefixes that end in a snapshot count.
        """
        started = time.perf_counter()
        if self._reuse == "nothing":
            namespace = object()
        elif self._reuse == "whole prompts":
            tokens = tokens[: self._longest_whole(tokens)]
        if self.windows is not None:
            tokens = tokens[: self.reusable(tokens, namespace, len(tokens))[0]]
        match = self.tree.match if self.snapshots is None else self.tree.match_state
        node, slots = match(tokens, namespace)
        self.tree.lock(node)
        holding = Holding(namespace, slots, len(slots), node)
        if self.windows is not None:
            self.windows.begin(holding)
        self.seconds += time.perf_counter() - started
        return holding

    def open_cached(self, tokens: tuple[int, ...], namespace: Hashable) -> Holding:
        """Return a new holding with the longest prefix of `tokens` that has KV, which it locks.

        The prefix need not end in a snapshot or have window slots.
        """
        node, slots = self.tree.match(tokens, namespace)
        self.tree.lock(node)
        read = len(tokens)  # as if all were behind the window: no step of this holding reads it
        return Holding(namespace, slots, len(slots), node, behind=read, locked_from=len(slots))

    def begin(self, holding: Holding) -> bool:
        """Give a new holding the state slot that a model with recurrent layers needs.

        Returns:
            True; False, with no change, if no slot can be freed.
        """
        return self.snapshots is None or self.snapshots.begin(holding)

    def draft(self, holding: Holding) -> bool:
        """Let the holding's next step verify a draft, which may be rejected; see `verified`.

        Returns:
            True; False, with no change, if the model has recurrent layers and no state slot is
            free.
        """
        return self.snapshots is None or self.snapshots.draft(holding)

    def verified(self, holding: Holding, whole: bool) -> bool:
        """Record whether the `whole` draft of a step was accepted.

        Returns:
            True; False if the step is undone because of recurrent states, so that its tokens must
            be computed again.
        """
        if self.snapshots is None:
            return True
        self.snapshots.verified(holding, whole)
        return whole

    def extend(self, holding: Holding, count: int) -> bool:
        """Append `count` slots to a holding; grow the pool or evict prefixes if needed.

        Returns:
            True; False, with no change, if fewer than `count` slots are `available`.
        """
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
        """Free a holding's slots beyond the first `length`, which must be at least `shared`."""
        assert holding.shared <= length <= len(holding.table)
        self._release(holding.table[length:])
        del holding.table[length:]
        if self.windows is not None:
            self.windows.trim(holding, length)

    def share(self, holding: Holding, tokens: tuple[int, ...]) -> None:
        """Give the slots of a holding's computed tokens to the tree, where all sequences find them.

        Where the tree has the same tokens already, the holding's duplicate slots are freed and
        its table gets the tree's slots.

        Args:
            tokens: the tokens of the first `len(tokens)` slots of the table.
        """
        started = time.perf_counter()
        length = len(tokens)
        present, (node, slots) = self.tree.insert(tokens, holding.table[:length], holding.namespace)
        duplicate = holding.table[holding.shared : present]
        self.held -= length - max(present, holding.shared)
        holding.table[:length] = slots
        self.tree.lock(node)
        before, owned = holding.node, holding.shared
        holding.node, holding.shared = node, length
        holding.whole = tokens
        if self.windows is not None:
            self.windows.share(holding, before, owned)
        if before is not None:
            self.tree.unlock(before)
        self._release(duplicate)
        self.seconds += time.perf_counter() - started

    def close(self, holding: Holding) -> None:
        """End a holding: unlock its shared prefix, free its other slots."""
        if self.snapshots is not None:
            self.snapshots.end(holding)
        if self.windows is not None:
            self.windows.close(holding)
        self._release(holding.table[holding.shared :])
        if holding.node is not None:
            self.tree.unlock(holding.node)
        if self._reuse == "whole prompts" and holding.whole:
            self._ended.setdefault(len(holding.whole), set()).add(hash(holding.whole))
        holding.table, holding.shared, holding.node, holding.whole = [], 0, None, ()

    def _longest_whole(self, tokens: tuple[int, ...]) -> int:
        """Return the length of the longest prefix that was the whole of an ended sequence, or 0."""
        lengths = sorted((n for n in self._ended if n <= len(tokens)), reverse=True)
        return next((n for n in lengths if hash(tokens[:n]) in self._ended[n]), 0)

    def before_next_plan(self, transfer: Transfer) -> None:
        """Queue a transfer, to be carried out before the next plan is computed."""
        self._transfers.append(transfer)

    def take_transfers(self) -> tuple[Transfer, ...]:
        """Return, and forget, the transfers to carry out before the next plan is computed."""
        taken = tuple(self._transfers)
        self._transfers.clear()
        return taken

    def lose(self, transfers: Iterable[Transfer]) -> None:
        """Drop what the second tier has read for transfers that will not be carried out."""
        for transfer in transfers:
            if isinstance(transfer, Load | LoadState) and self.tier is not None:
                self.tier.store.drop(transfer.reading)

    def spill(self) -> None:
        """Evict all unlocked prefixes and offer them to the second tier."""
        self._evict(self.tree.evictable)

    def flush(self) -> None:
        """Evict all unlocked prefixes without offering them to the second tier.

        Transfers to the second tier that are not carried out yet are forgotten; loads and an
        enlargement of the pool remain.
        """
        self._transfers = [t for t in self._transfers if isinstance(t, Load | LoadState)]
        if self.capacity > self._initial:  # the step that was to enlarge the pool may have failed
            self._transfers.insert(0, Grow(self.capacity))
        if self.snapshots is not None and self.snapshots.grown:
            self._transfers.insert(0, GrowStates(self.snapshots.capacity))
        if self.windows is not None and self.windows.grown:
            self._transfers.insert(0, GrowWindows(self.windows.capacity))
        self.slots.free(self.tree.evict(self.tree.evictable))
        if self.snapshots is not None:
            self.snapshots.evict_all()

    def reusable(
        self, tokens: tuple[int, ...], namespace: Hashable, limit: int, start: Node | None = None
    ) -> tuple[int, Node]:
        """Return how many of the first `limit` tokens a new holding would find in the cache.

        Changes nothing. With `reuse="whole prompts"`, a new holding may find fewer.

        Args:
            start: the node that an earlier call returned for these tokens, to search from there.

        Returns:
            The number of tokens, which may exceed `limit` if all layers attend to all tokens; and
            the last node wholly inside the longest cached prefix.
        """
        length, node = self.tree.match_length(tokens, namespace, start)
        if self.snapshots is not None:
            ends = (n.depth for n in node.path() if n.state and n.depth <= limit)
            length = next(ends, 0)
        if self.windows is not None:
            length = self.windows.reusable(tokens, node, min(length, limit))
        return length, node

    def check(self, holdings: Iterable[Holding] = ()) -> None:
        """Assert that every slot is free, cached or held exactly once.

        Args:
            holdings: all open holdings.
        """
        self.tree.check()
        self.slots.check()
        holdings = list(holdings)
        if self.snapshots is not None:
            self.snapshots.check(holdings)
        if self.windows is not None:
            self.windows.check(holdings)
        held = [slot for h in holdings for slot in h.table[h.shared :]]
        cached = list(self.tree.slots())
        assert len(held) == self.held
        everything = [*self.slots.free_slots(), *cached, *held]
        assert sorted(everything) == list(range(1, self.capacity + 1))
        for h in holdings:
            path = list(h.node.path())[::-1] if h.node else []
            assert h.table[: h.shared] == [slot for node in path for slot in node.slots]

    def _grow(self, missing: int) -> None:
        """Double the pool, or add `missing` slots if that is more; never beyond `most` slots."""
        self.capacity = min(max(2 * self.capacity, self.capacity + missing), self.most)
        self.slots.grow(self.capacity)
        self._transfers.append(Grow(self.capacity))

    def _grow_states(self, slots: int) -> None:
        self._transfers.append(GrowStates(slots))

    def _grow_windows(self, slots: int) -> None:
        self._transfers.append(GrowWindows(slots))

    def _evict(self, count: int) -> None:
        self.slots.free(self.tree.evict(count, self._spill if self.tier else None))

    def _spill(self, node: Node, namespace: Hashable) -> None:
        assert self.tier is not None
        spill = self.tier.spill(node, namespace)
        if spill is not None:
            self._transfers.append(spill)
        self._spill_window(node)
        if node.state:
            self._spill_state(node, namespace)

    def _spill_state(self, node: Node, namespace: Hashable) -> None:
        spill = self.state_tier.spill(node, namespace) if self.state_tier is not None else None
        if spill is not None:
            self._transfers.append(spill)

    def _spill_window(self, node: Node) -> None:
        if self.window_tier is not None:
            spill = self.window_tier.spill(node, self.tree.namespace_of(node))
            if spill is not None:
                self._transfers.append(spill)

    def _node_windows(self, windows: WindowSlots) -> NodeWindows[Node]:
        more = extra_tokens(self.tier.size) if self.tier is not None else 0
        return NodeWindows(windows.first, windows.window - 1, more, self._spill_window)

    def _release(self, slots: list[int]) -> None:
        self.held -= len(slots)
        self.slots.free(slots)
