"""A program as a value: nodes in an order in which they may run.

A `Graph` is a tuple of frozen nodes. Each node appends to one *stream* (a prompt; stream 0 is the
program's own `s`), and everything it needs comes before it. There are two kinds of edges:

- *within a stream*, from each node to the next one of the same stream: the order of its text;
- *between streams*, from the node that gives a variable its value to those that read it
  (`Variable(source=...)`), from a Fork to its branches and from the branches to their Join.

A stream begins with a GetForkItem (a branch) or a Call (a nested program, traced into this graph);
only stream 0 begins with nothing. Arguments and variables occur inside values
(`graph/values.py`), which stand in the language's own expressions where those hold text. All else
is constant, so a graph knows its prompts up to what only a run can tell.

Passes are functions Graph -> Graph. What they may rely on, and must keep:

- `id`s are unique within a graph, nested bodies included; ids and stream numbers are names, not
  positions. A pass gives new nodes ids from `graph.next_id` on and keeps the others, because a
  Variable points to its source by id.
- The order of nodes of one stream is the order of its text. Nodes of different streams may change
  places as long as no edge points backwards. Fork, Join, Sync, SetVariable and Score wait
  while the graph runs (as they do in the language); all other nodes only submit.
- Break, if there is one, stands last: from there on the Python body is interpreted.

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
"""The program's own stream."""

ParameterKind = Literal["text", "texts", "constant"]
Plain = str | int | float | bool | None | tuple["Plain", ...] | list["Plain"] | dict[str, "Plain"]
"""Data that JSON can hold, and tuples."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a graph.

    `text` and `texts` (a list of texts, of just `length` ones unless that is None) are free in
    each run. A `constant` has settled the graph: a run has to give a value equal to `value`.

    Attributes:
        default: what a run that gives nothing gets, if `optional`.
        opaque: the constant is no plain data (`value` is then its repr), so that a graph read
            from a file cannot be run.
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
    """`before` has to happen before `after`; both are ids of nodes."""

    before: int
    after: int
    between_streams: bool


@dataclass(frozen=True)
class Graph:
    """A traced program.

    Attributes:
        program: its name.
        parameters: what a run takes, in order.
        nodes: in an order in which they may run.
        result: what the body returned; meaningless when the graph ends in a Break.
        reads: ids of nodes whose variables the body reads. It waits for them, so a run returns,
            or raises what went wrong in them, only when they have happened.
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
        """The break at the end, if the graph is only the beginning of its program."""
        last = self.nodes[-1] if self.nodes else None
        return last if isinstance(last, Break) else None

    @property
    def needs_program(self) -> str | None:
        """Why a run needs the Python program besides the graph; None if it does not."""
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
        """An id that no node has; so are all above it."""
        return max((node.id for node in self.all_nodes()), default=-1) + 1

    @property
    def streams(self) -> tuple[int, ...]:
        """The streams in the order in which they begin."""
        return tuple(dict.fromkeys((ROOT, *(node.stream for node in self.nodes))))

    def nodes_of(self, stream: int) -> tuple[Node, ...]:
        """The nodes of one stream in order; those inside a ForEach are left to it."""
        return tuple(node for node in self.nodes if node.stream == stream)

    def all_nodes(self) -> Iterator[Node]:
        """Every node, the bodies of loops and hints included."""
        return with_bodies(self.nodes)

    def node(self, id: int) -> Node:
        """Raises `KeyError` when no node has this id."""
        for node in self.all_nodes():
            if node.id == id:
                return node
        raise KeyError(id)

    def edges(self) -> tuple[Edge, ...]:
        """List which node has to happen before which; nodes in loops count as their ForEach."""
        return tuple(_edges(self.nodes))

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """The same program made of other nodes."""
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
