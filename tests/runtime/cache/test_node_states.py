"""Snapshots in a radix tree: which prefix is found, and which snapshot or KV leaves first."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sgl_mlx.runtime.cache.node_states import NodeStates
from sgl_mlx.runtime.cache.radix import PLAIN, Node, RadixTree

Tokens = tuple[int, ...]

tokens = st.lists(st.integers(1, 3), min_size=1, max_size=8).map(tuple)
CAPACITY = 6


class NodeStatesMachine(RuleBasedStateMachine):
    """The model: by prefix, the slot of its snapshot. The order of eviction by looking at all."""

    def __init__(self) -> None:
        super().__init__()
        self.states: NodeStates[Node] = NodeStates(CAPACITY)
        self.tree = RadixTree(self.states)
        self.slot: dict[Tokens, int] = {}
        self.pinned: list[Node] = []
        self.next_slot = 1

    @staticmethod
    def prefix(node: Node) -> Tokens:
        return tuple(t for n in reversed(list(node.path())) for t in n.tokens)

    @rule(tokens=tokens, snapshot=st.booleans())
    def insert(self, tokens: Tokens, snapshot: bool) -> None:
        fresh = list(range(self.next_slot, self.next_slot + len(tokens)))
        self.next_slot += len(tokens)
        _, (node, _) = self.tree.insert(tokens, fresh)
        if snapshot and not node.state and self.states.slots.free_count:
            [slot] = self.states.slots.alloc(1)
            self.states.put(node, slot)
            self.slot[tokens] = slot

    @rule(tokens=tokens)
    def match(self, tokens: Tokens) -> None:
        node, slots = self.tree.match_state(tokens)
        found = [n for n in range(1, len(tokens) + 1) if tokens[:n] in self.slot]
        assert node.depth == len(slots) == max(found, default=0)
        if found:
            assert node.state == self.slot[tokens[: node.depth]]

    @precondition(lambda self: self.slot)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        """As a sequence does that starts from a snapshot: it locks the path too."""
        node, _ = self.tree.match(data.draw(st.sampled_from(sorted(self.slot))))
        self.tree.lock(node)
        self.states.pin(node)
        self.pinned.append(node)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        node = self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))
        self.states.unpin(node)
        self.tree.unlock(node)

    @rule()
    def evict_state(self) -> None:
        """Least recently used first; on one path, a branching stays longest."""

        def order(node: Node) -> tuple[int, int, int]:
            children = len(node.children)
            kind = 0 if children == 1 else 1 if children == 0 else 2
            return node.last_used, kind, node.depth

        free = [n for n in self.tree.nodes() if n.state and n not in self.pinned]
        expected = min(free, key=order, default=None)
        gone: list[tuple[Node, object]] = []
        assert self.tree.evict_state(lambda *found: gone.append(found)) == bool(free)
        assert gone == ([(expected, PLAIN)] if expected else [])
        if expected is not None:
            assert not expected.state
            del self.slot[self.prefix(expected)]

    @rule(count=st.integers(1, 6))
    def evict_keys(self, count: int) -> None:
        """KV that no snapshot follows goes first."""
        gone: list[Node] = []

        def check(node: Node, _: object) -> None:
            leaves = [n for n in self.tree.nodes() if not n.children and not n.locks]
            assert node is min(leaves, key=lambda n: (bool(n.state), n.last_used))
            if node.state:
                del self.slot[self.prefix(node)]
            gone.append(node)

        self.tree.evict(count, check)
        assert not any(node.state for node in gone)

    @invariant()
    def every_slot_is_free_or_a_snapshot(self) -> None:
        self.tree.check()
        assert self.states.cached == len(self.slot)
        assert self.states.slots.free_count == CAPACITY - len(self.slot)
        assert {self.prefix(n): n.state for n in self.tree.nodes() if n.state} == self.slot


TestNodeStates = NodeStatesMachine.TestCase
# derandomize: CI runs the same steps each time, so that a failure is the change's own
TestNodeStates.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, derandomize=True
)


def test_the_queue_of_snapshots_stays_proportional_to_them() -> None:
    states: NodeStates[Node] = NodeStates(2)
    tree = RadixTree(states)
    _, (node, _) = tree.insert((1, 2, 3), (1, 2, 3))
    states.put(node, states.slots.alloc(1)[0])
    for _ in range(10_000):
        states.pin(node)
        states.unpin(node)
    tree.check()
