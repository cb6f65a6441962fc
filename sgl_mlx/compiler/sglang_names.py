"""Names that SGLang's traces have, on our graphs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


class TracedNames:
    """A mixin of `Graph`: SGLang's names for what a trace holds."""

    nodes: tuple[Any, ...]
    result: Any

    def all_nodes(self) -> Iterator[Any]:
        raise NotImplementedError

    @property
    def streams(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def last_node(self) -> LastNode | None:
        """The last node; None in an empty graph."""
        return LastNode(self, self.nodes[-1]) if self.nodes else None

    @property
    def variables(self) -> dict[str, Any]:
        """The nodes that give a value to a variable, by its name; of one name the last."""
        named = ((_name_of(node), node) for node in self.all_nodes())
        return {name: node for name, node in named if name is not None}

    @property
    def ret_value(self) -> Any:
        """The value that the body returned."""
        return self.result

    @property
    def child_states(self) -> list[int]:
        """The streams of branches."""
        return list(self.streams[1:])

    def flatten_nodes(self) -> list[Any]:
        """Every node, the bodies of loops included."""
        return list(self.all_nodes())


class LastNode:
    """The last node of a graph, which can also show what came before it."""

    def __init__(self, graph: Any, node: Any) -> None:
        self._graph, self._node = graph, node

    def print_graph_dfs(self) -> str:
        """The graph as a tree of text."""
        # here, because drawing stands above graphs
        from sgl_mlx.compiler.show import pretty

        return pretty(self._graph)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def __repr__(self) -> str:
        return repr(self._node)


def print_graph(graph: Any) -> None:
    """Write a graph as a tree to standard output."""
    from sgl_mlx.compiler.show import pretty

    sys.stdout.write(f"{pretty(graph)}\n")


def _name_of(node: Any) -> str | None:
    """The variable's name, where it is a constant text."""
    value = getattr(getattr(node, "name", None), "value", None)
    return value if isinstance(value, str) else None
