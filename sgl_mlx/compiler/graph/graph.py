"""Graphs: a traced program as data, with its nodes in an order in which they may run.

A `Graph` is a tuple of frozen nodes. Each node belongs to one *stream*: a prompt that grows from
node to node. Streams have numbers; stream 0 is the program's own `s`. A node comes after all nodes
that it depends on. There are two kinds of edges:

- *within a stream*, from each node to the next one of the same stream: the order of its text;
- *between streams*, from the node that sets a variable to those that read it
  (`Variable(source=...)`), from a Fork to its branches and from the branches to their Join.

A stream other than 0 begins with a GetForkItem (a branch) or a Call (a nested program, traced into
this graph). Arguments and variables are symbolic values (`graph/values.py`) inside the language's
expressions, in place of text. Everything else in a graph is constant.

Passes are functions Graph -> Graph. They may rely on these rules, and must keep them:

- `id`s are unique within a graph, nested bodies included. Ids and stream numbers are names, not
  positions. A pass takes the ids of new nodes from `graph.next_id` on and keeps all other ids,
  because a Variable points to its source by id.
- The order of nodes of one stream is the order of its text. Nodes of different streams may change
  places as long as no edge points backwards. Fork, Join, Sync, SetVariable and Score wait
  while the graph runs (as they do in the language); all other nodes only submit work.
- A Break, if there is one, is the last node: at its line, the Python body takes over.

`show.py` draws graphs, `serialise.py` reads and writes them, `running/run.py` runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from sgl_mlx.compiler.graph.nodes import (
    Break,
    GetForkItem,
    Join,
    Node,
    Prefetch,
    body_of,
    sources_of,
    with_bodies,
)
from sgl_mlx.compiler.graph.values import NONE, Value

ROOT = 0
"""Number of the program's own stream."""

ParameterKind = Literal["text", "texts", "constant"]
Plain = str | int | float | bool | None | tuple["Plain", ...] | list["Plain"] | dict[str, "Plain"]
"""Data that JSON can hold, and tuples of such data."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a graph.

    A "text" or "texts" (list of texts) parameter takes any value of its kind in each run. For a
    "constant" parameter, the graph is right for one value only: a run has to pass an equal value.

    Attributes:
        name: the name of the parameter.
        kind: "text", "texts" or "constant".
        value: the value at the time of tracing, for a constant.
        length: the number of texts that a list has to have; None for any number.
        optional: True if a run may leave the argument out.
        default: the value of an optional argument that is left out; if it is no plain data, its
            repr.
        opaque: True if the constant is no plain data. `value` is then the constant's repr, and a
            graph read from a file cannot be run.
    """

    name: str
    kind: ParameterKind
    value: Plain = None
    length: int | None = None
    optional: bool = False
    default: Plain = None
    opaque: bool = False


@dataclass(frozen=True)
class Edge:
    """A dependency: the node with id `before` has to run before the node with id `after`.

    Attributes:
        between_streams: True if the two nodes belong to different streams.
    """

    before: int
    after: int
    between_streams: bool


@dataclass(frozen=True)
class Graph:
    """A traced program.

    Attributes:
        program: the name of the program.
        parameters: the arguments that a run takes, in order.
        nodes: the nodes, in an order in which they may run.
        result: the value that the Python function returned; meaningless if the last node is a
            `Break`, from which on the program is interpreted.
        reads: ids of `gen` and `select` nodes whose result the Python function reads. A run waits
            for these results and raises their errors, as the function would.
    """

    program: str
    parameters: tuple[Parameter, ...] = ()
    nodes: tuple[Node, ...] = ()
    result: Value = NONE
    reads: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def broken(self) -> Break | None:
        """The Break node, with which a graph ends early; None if it covers the whole program."""
        last = self.nodes[-1] if self.nodes else None
        return last if isinstance(last, Break) else None

    @property
    def needs_program(self) -> str | None:
        """The reason why a run needs the Python program as well; None if the graph is enough."""
        opaque = [p.name for p in self.parameters if p.opaque]
        if self.broken is None:
            return _no_data(self.program, opaque[0]) if opaque else None
        line = self.broken.line
        where = f"{line.file}:{line.number}" if line else "?"
        return (
            f"the graph of {self.program}() ends at line {where} ({self.broken.reason}); "
            "from there on it needs the Python program"
        )

    @property
    def next_id(self) -> int:
        """The id for the next new node: one above the highest id in the graph."""
        return max((node.id for node in self.all_nodes()), default=-1) + 1

    @property
    def streams(self) -> tuple[int, ...]:
        """The numbers of the streams, in the order in which they begin."""
        return tuple(dict.fromkeys((ROOT, *(node.stream for node in self.nodes))))

    def nodes_of(self, stream: int) -> tuple[Node, ...]:
        """Return the nodes of one stream in order, without those inside loops and hints."""
        return tuple(node for node in self.nodes if node.stream == stream)

    def all_nodes(self) -> Iterator[Node]:
        """Iterate over all nodes, those inside loops and hints included."""
        return with_bodies(self.nodes)

    def node(self, id: int) -> Node:
        """Return the node with this id, also from inside a loop or hint.

        Raises:
            KeyError: no node has this id.
        """
        for node in self.all_nodes():
            if node.id == id:
                return node
        raise KeyError(f"the graph has no node {id}")

    def edges(self) -> tuple[Edge, ...]:
        """List the dependencies between nodes; a node inside a loop counts as its ForEach."""
        return tuple(_edges(self.nodes))

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """Copy the graph with other nodes."""
        return replace(self, nodes=tuple(nodes))


def _edges(nodes: tuple[Node, ...]) -> Iterator[Edge]:
    last: dict[int, int] = {}
    outer = {inner.id: node.id for node in nodes for inner in with_bodies((node,))}
    branches: dict[int, list[int]] = {}
    stream_of = {node.id: node.stream for node in nodes}
    for node in nodes:
        touched = {node.stream, *(inner.stream for inner in with_bodies(body_of(node)))}
        for stream in sorted(touched) if not isinstance(node, Prefetch) else ():
            if stream in last:
                yield Edge(last[stream], node.id, between_streams=False)
            last[stream] = node.id
        before = [outer[source] for source in sources_of(node)]
        if isinstance(node, GetForkItem):
            branches.setdefault(node.fork, []).append(node.stream)
            before.append(node.fork)
        if isinstance(node, Join):
            before += [last[stream] for stream in branches.get(node.fork, ())]
        for source in dict.fromkeys(before):
            if source != node.id and stream_of.get(source) != node.stream:
                yield Edge(source, node.id, between_streams=True)


def _no_data(program: str, argument: str) -> str:
    return (
        f"the graph of {program}() was made for an argument {argument!r} that is no plain data, "
        "which a file cannot hold"
    )
