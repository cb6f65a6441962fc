"""A node of the radix tree."""

from __future__ import annotations

from collections.abc import Iterator


class Node:
    """A node and the edge that leads to it.

    Attributes:
        depth: number of tokens from the root to the end of the edge.
        state: slot of the recurrent state after these tokens; 0 for none.
        readers: number of sequences that will read this state in their next step.
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
    )

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], slots: list[int]) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.children: dict[int, Node] = {}
        self.depth: int = (parent.depth if parent else 0) + len(tokens)
        self.locks = 0
        self.last_used = 0
        self.state = 0
        self.readers = 0

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
