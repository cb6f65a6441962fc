"""Radix tree from token sequences to KV slots (RadixAttention, arXiv 2312.07104).

Each edge holds a run of tokens and one slot for each token. A node is *locked* while a sequence
uses this node or one below it. Unlocked leaves are evicted, least recently used first. The tree
owns slot numbers, never tensors. Each token sequence belongs to a *namespace*: equal tokens have
equal KV only within one namespace. Tokens after parallel branches or a position gap have another
namespace than ordinary text.

With a `NodeStates`, a node may also own the recurrent state at its end, and only prefixes that end
in a state can be reused. KV after the deepest state on its path is then evicted first. With a
`NodeWindows`, nodes also own slots of layers with a sliding window.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

from sgl_mlx.runtime.cache.node_states import NodeStates
from sgl_mlx.runtime.cache.node_windows import NodeWindows

PLAIN: Hashable = ()
"""Namespace of ordinary text that starts at position 0."""


class Node:
    """A node of the tree, with the edge that leads to it.

    Attributes:
        tokens, slots: the tokens on the edge, and the slot of each.
        children: the nodes below, by the first token of their edges.
        locks: number of locks (`RadixTree.lock`) on this node and the nodes below it.
        last_used: the tree's clock when the node was last matched.
        depth: number of tokens from the root to the end of the edge.
        state: slot of the recurrent state after these tokens; 0 for none.
        readers: number of sequences that will read this state in their next step.
        window: window slots of the edge's last tokens; see `NodeWindows`.
        window_locks: number of sequences that read these slots.
        window_end: True if other prompts are likely to branch off at the edge's end; False if one
            longer path went on from there and was evicted; None if neither is known.
    """

    __slots__ = (
        "children",
        "depth",
        "last_used",
        "locks",
        "parent",
        "readers",
        "slots",
        "state",
        "tokens",
        "window",
        "window_end",
        "window_locks",
    )

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], slots: list[int]) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.children: dict[int, Node] = {}
        self.depth: int = (parent.depth if parent else 0) + len(tokens)
        self.locks = 0
        self.last_used = 0
        self.state = self.readers = self.window_locks = 0
        self.window: list[int] = []
        self.window_end: bool | None = None

    @property
    def in_tree(self) -> bool:
        """True for a root and every node in the tree; False after eviction."""
        return self.parent is not None or not self.tokens

    def path(self) -> Iterator[Node]:
        """Yield this node and its ancestors, upwards, without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent


_NEVER = 1 << 62
"""A number larger than the clock of any tree."""

OnEvict = Callable[[Node, Hashable], None]


class Match(NamedTuple):
    """The node at the end of the longest cached prefix, and the slots of that prefix."""

    node: Node
    slots: list[int]


class RadixTree:
    """The radix tree of one pool. `evictable` and `locked` count its unlocked and locked slots.

    Args:
        states: the recurrent states of its nodes; None for a model of attention alone.
        windows: the window slots of its nodes; None if no layers have slots of their own.
    """

    def __init__(
        self, states: NodeStates[Node] | None = None, windows: NodeWindows[Node] | None = None
    ) -> None:
        self.states, self.windows = states, windows
        self._roots: dict[Hashable, Node] = {}
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []  # heap; stale entries are skipped
        self._node_count = 0
        self.evictable = 0
        self.locked = 0

    # -- lookup -------------------------------------------------------------------------------

    def match(self, tokens: Sequence[int], namespace: Hashable = PLAIN) -> Match:
        """Return the longest cached prefix; `lock` its node to keep the slots from eviction.

        An edge within which the prefix ends is split. The path is marked as just used.
        """
        tokens = tuple(tokens)
        node = self._root(namespace)
        slots: list[int] = []
        while (child := self._next(node, tokens)) is not None:
            shared = common_prefix(child.tokens, tokens, node.depth)
            if shared < len(child.tokens):
                child = self.split(child, shared)
            slots += child.slots
            node = child
        self._touch(node)
        return Match(node, slots)

    def match_state(self, tokens: Sequence[int], namespace: Hashable = PLAIN) -> Match:
        """Return the longest cached prefix that ends in a state; mark its path as just used.

        `lock` the node to keep the slots, and pin it in `states` to keep the state.
        """
        _, node = self.match_length(tuple(tokens), namespace)
        path = list(node.path())
        while path and not path[0].state:
            del path[0]
        node = path[0] if path else self._root(namespace)
        self._touch(node)
        return Match(node, [slot for n in reversed(path) for slot in n.slots])

    def match_length(
        self, tokens: tuple[int, ...], namespace: Hashable = PLAIN, start: Node | None = None
    ) -> tuple[int, Node]:
        """Return the length of the longest cached prefix and the last node wholly inside it.

        Args:
            start: the node that an earlier call returned for these tokens, to search from there.
        """
        # a root may have been replaced since; any other node in the tree is still on this path
        known = start is not None and start.parent is not None
        node = start if start is not None and known else self._root(namespace)
        while (child := self._next(node, tokens)) is not None:
            shared = common_prefix(child.tokens, tokens, node.depth)
            if shared < len(child.tokens):
                return node.depth + shared, node
            node = child
        return node.depth, node

    def continuation(
        self, tokens: tuple[int, ...], namespace: Hashable, start: Node | None, limit: int
    ) -> tuple[list[int], Node]:
        """Return up to `limit` tokens that follow `tokens` in the tree, on the path used last.

        Args:
            start: the node that an earlier call returned for these tokens, to search from there.

        Returns:
            The tokens, [] unless the tree has all of `tokens` and more; and the last node wholly
            inside `tokens`.
        """
        length, inside = self.match_length(tokens, namespace, start)
        after: list[int] = []
        if length == len(tokens):
            node, known = inside, length - inside.depth
            if known:
                node = node.children[tokens[node.depth]]
                after += node.tokens[known : known + limit]
            while node.children and len(after) < limit:
                node = max(node.children.values(), key=lambda child: child.last_used)
                after += node.tokens[: limit - len(after)]
        return after, inside

    # -- growth -------------------------------------------------------------------------------

    def insert(
        self, tokens: Sequence[int], slots: Sequence[int], namespace: Hashable = PLAIN
    ) -> tuple[int, Match]:
        """Add a path to the tree, which takes over the slots of the tokens that were missing.

        Args:
            tokens: the whole path from the root.
            slots: one for each token; the slots of tokens already present stay the caller's.

        Returns:
            How many leading tokens were already present, and the path's node and slots in the tree.
        """
        tokens = tuple(tokens)
        assert len(tokens) == len(slots)
        node, present = self.match(tokens, namespace)
        length = node.depth
        if length < len(tokens):
            node = self._add(node, tokens[length:], list(slots[length:]))
        return length, Match(node, present + list(slots[length:]))

    # -- ownership ----------------------------------------------------------------------------

    def lock(self, node: Node) -> None:
        """Keep a node and its ancestors from eviction; each call needs its own `unlock`."""
        for n in node.path():
            if n.locks == 0:
                self.evictable -= len(n.tokens)
                self.locked += len(n.tokens)
            n.locks += 1

    def unlock(self, node: Node) -> None:
        for n in node.path():
            assert n.locks > 0, "unlock without lock"
            n.locks -= 1
            if n.locks == 0:
                self.evictable += len(n.tokens)
                self.locked -= len(n.tokens)
                self._offer(n)

    def evict(self, count: int, on_evict: OnEvict | None = None) -> list[int]:
        """Evict least recently used unlocked leaves until `count` slots are free or none is left.

        Args:
            on_evict: called with each leaf and its namespace, before the leaf leaves the tree.

        Returns:
            The freed slots, which the caller owns now; more than `count` if the last leaf has more.
        """
        freed: list[int] = []
        while len(freed) < count and self._leaves:
            used, _, node = heapq.heappop(self._leaves)
            if node.children or node.locks or not node.in_tree:
                continue
            if used != self._rank(node):
                self._offer(node)
                continue
            if on_evict is not None:
                on_evict(node, self.namespace_of(node))
            freed += node.slots
            self._remove(node)
        return freed

    def evict_state(self, on_evict: OnEvict | None = None) -> bool:
        """Free the slot of the state that is needed least; return False if none can be freed."""
        assert self.states is not None
        node = self.states.least_needed()
        if node is None:
            return False
        if on_evict is not None:
            on_evict(node, self.namespace_of(node))
        self.states.drop(node)
        self._offer(node)
        return True

    # -- inspection ---------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Yield all nodes except the roots, depth first."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def slots(self) -> Iterator[int]:
        for node in self.nodes():
            yield from node.slots

    @property
    def namespaces(self) -> int:
        """Number of namespaces that have a root; some may be empty."""
        return len(self._roots)

    def check(self) -> None:
        """Assert that structure, locks and counts are consistent."""
        evictable = locked = 0
        offered = {id(node) for _, _, node in self._leaves}
        for node in self.nodes():
            assert node.locks or node.children or id(node) in offered
            assert node.parent is not None
            assert node.parent.children[node.tokens[0]] is node
            assert len(node.tokens) == len(node.slots) > 0
            assert node.depth == node.parent.depth + len(node.tokens)
            assert node.locks >= sum(child.locks for child in node.children.values())
            if node.locks:
                locked += len(node.tokens)
            else:
                evictable += len(node.tokens)
        assert (evictable, locked) == (self.evictable, self.locked)
        for owned in (self.states, self.windows):
            if owned is not None:
                owned.check(self.nodes())
        assert len(self._leaves) <= 4 * self._node_count + 64, "stale entries pile up"

    # -- inside -------------------------------------------------------------------------------

    def _root(self, namespace: Hashable) -> Node:
        root = self._roots.get(namespace)
        if root is None:
            self._roots = {key: r for key, r in self._roots.items() if r.children}
            root = self._roots[namespace] = Node(None, (), [])
        return root

    def namespace_of(self, node: Node) -> Hashable:
        top = list(node.path())[-1].parent
        return next(key for key, root in self._roots.items() if root is top)

    @staticmethod
    def _next(node: Node, tokens: tuple[int, ...]) -> Node | None:
        return node.children.get(tokens[node.depth]) if node.depth < len(tokens) else None

    def _touch(self, node: Node) -> None:
        self._clock += 1
        for n in node.path():
            n.last_used = self._clock

    def _add(self, parent: Node, tokens: tuple[int, ...], slots: list[int]) -> Node:
        node = Node(parent, tokens, slots)
        node.last_used = self._clock
        parent.children[tokens[0]] = node
        self._node_count += 1
        self.evictable += len(tokens)
        self._offer(node)
        if parent.state and self.states is not None:
            self.states.offer(parent)
        return node

    def split(self, node: Node, length: int) -> Node:
        """Split a node's edge after `length` tokens; return the new upper node.

        `node` stays the lower one, so that references to it keep the whole path.
        """
        assert node.parent is not None
        upper = Node(node.parent, node.tokens[:length], node.slots[:length])
        upper.locks = node.locks
        upper.last_used = node.last_used
        node.parent.children[upper.tokens[0]] = upper
        self._node_count += 1
        node.tokens, node.slots = node.tokens[length:], node.slots[length:]
        node.parent = upper
        upper.children[node.tokens[0]] = node
        if self.windows is not None:
            self.windows.split(upper, node)
        return upper

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens[0]]
        node.parent = None
        self._node_count -= 1
        self.evictable -= len(node.tokens)
        self._offer(parent)
        for owned in (self.states, self.windows):
            if owned is not None:
                owned.removed(node, parent)

    def _rank(self, node: Node) -> int:
        """Return a node's place in the order of eviction; lower places go first.

        In a tree with states, a leaf without a state cannot be reused and goes before all that can.
        """
        return node.last_used if self.states is None or node.state else node.last_used - _NEVER

    def _offer(self, node: Node) -> None:
        """Queue a node for eviction if it is an unlocked leaf; `evict` checks this again."""
        if not node.children and not node.locks and node.parent is not None:
            heapq.heappush(self._leaves, self._entry(node))
        if len(self._leaves) > 4 * self._node_count + 64:
            self._leaves = [self._entry(n) for n in self.nodes() if not n.children and not n.locks]
            heapq.heapify(self._leaves)

    def _entry(self, node: Node) -> tuple[int, int, Node]:
        return self._rank(node), id(node), node


def common_prefix(edge: tuple[int, ...], tokens: tuple[int, ...], start: int) -> int:
    """Return the length of the common prefix of `edge` and `tokens[start:]`."""
    limit = min(len(edge), len(tokens) - start)
    if edge[:limit] == tokens[start : start + limit]:
        return limit
    low, high = 0, limit  # edge[:low] agrees, edge[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if edge[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low
