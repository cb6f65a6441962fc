"""SGLang's names for the graph of a traced program."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.show import pretty


class Trace(Graph):
    """A graph that also has the attributes of SGLang's traces."""

    @classmethod
    def of(cls, graph: Graph) -> Trace:
        """Copy a graph into a `Trace`."""
        return cls(**{field.name: getattr(graph, field.name) for field in fields(graph)})

    def __eq__(self, other: object) -> bool:
        mine = ((field.name, getattr(self, field.name)) for field in fields(self))
        return isinstance(other, Graph) and all(getattr(other, n) == x for n, x in mine)

    __hash__ = Graph.__hash__

    @property
    def last_node(self) -> LastNode | None:
        """The last node; None if the graph is empty."""
        return LastNode(self, self.nodes[-1]) if self.nodes else None

    @property
    def variables(self) -> dict[str, Any]:
        """The node that last sets each variable, by the name of the variable."""
        named = ((_name_of(node), node) for node in self.all_nodes())
        return {name: node for name, node in named if name is not None}

    @property
    def ret_value(self) -> Any:
        """The symbolic value that the body returned."""
        return self.result

    @property
    def child_states(self) -> list[int]:
        """The numbers of all streams but the first, in the order in which they begin."""
        return list(self.streams[1:])

    def flatten_nodes(self) -> list[Any]:
        """List all nodes, those inside loops and hints included."""
        return list(self.all_nodes())


class LastNode:
    """The last node of a graph, with SGLang's method to show the whole graph."""

    def __init__(self, graph: Any, node: Any) -> None:
        self._graph, self._node = graph, node

    def print_graph_dfs(self) -> str:
        """Return the whole graph as a tree of text."""
        return pretty(self._graph)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def __repr__(self) -> str:
        return repr(self._node)


def print_graph(graph: Any) -> None:
    """Write a graph as a tree to standard output."""
    sys.stdout.write(f"{pretty(graph)}\n")


def _name_of(node: Any) -> str | None:
    """Return the name of the variable that a node sets; None if it is absent or not constant."""
    name = getattr(node, "name", None) or getattr(getattr(node, "expr", None), "name", None)
    name = getattr(name, "value", name)
    return name if isinstance(name, str) else None
