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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from sgl_mlx.compiler.graph.values import NONE, Value, Variable, plain, valued, walk
from sgl_mlx.lang import ir

ROOT = 0
"""The program's own stream."""

JoinMode = Literal["gather_variable", "concate_and_append"]


@dataclass(frozen=True)
class Line:
    """A line of a program; errors of a node name it."""

    function: str
    file: str
    number: int


@dataclass(frozen=True)
class Node:
    """A step of a program: its id, the stream it belongs to, and the line that made it."""

    id: int
    stream: int
    line: Line | None = field(default=None, kw_only=True, compare=False)


# -- the language -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Append(Node):
    """An expression of the language, appended to the stream; never an `ExprList`.

    Where the expression holds text (its names, choices, the text itself) there may be a symbol of
    `graph/values.py` instead; constants are plain.
    """

    expr: ir.Expr


@dataclass(frozen=True)
class Score(Node):
    """The decision that `select` would take, not appended; a Variable of this node reads it."""

    choices: tuple[Value, ...]
    method: str = "token_length_normalized"


@dataclass(frozen=True)
class SetVariable(Node):
    """`s[name] = value`."""

    name: Value
    value: Value


# -- streams ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fork(Node):
    """A fork into one branch for each position offset; a `GetForkItem` begins each branch."""

    offsets: tuple[int, ...]


@dataclass(frozen=True)
class GetForkItem(Node):
    """The beginning of a branch: copy `index` of the node `fork`."""

    fork: int
    index: int


@dataclass(frozen=True)
class Join(Node):
    """The end of a fork: all its branches are brought back to the stream they came from."""

    fork: int
    mode: JoinMode = "gather_variable"


@dataclass(frozen=True)
class Call(Node):
    """The beginning of a nested program: a stream with nothing in it, on the default backend."""

    program: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Return(Node):
    """The value that a nested program returned; the graph's own is `Graph.result`."""

    value: Value


@dataclass(frozen=True)
class Sync(Node):
    """Wait until all of the stream so far has happened."""


# -- hints and control --------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefetch(Node):
    """A hint: the prompt that `body` writes, from nothing, will be asked for soon.

    `body` is made of Text and roles alone, and reads no variable. Running it changes no stream;
    `stream` only says among which nodes the hint stands. `sampling` is not part of it.
    """

    body: tuple[Node, ...]


@dataclass(frozen=True)
class ForEach(Node):
    """The body once for each text of the list argument; unrolled when the graph runs.

    The body appends to streams that are there already; in it, LoopItem and LoopIndex of this
    node's id mean the turn. Its own nodes are read within the same turn only.
    """

    argument: str
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Break(Node):
    """From here on the Python body goes on; always the last node.

    `code` is the line's text, `reason` what on it only a run can tell.
    """

    code: str
    reason: str


# -- the whole ----------------------------------------------------------------------------------

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
        return _with_bodies(self.nodes)

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


def body_of(node: Node) -> tuple[Node, ...]:
    """The nodes inside a loop or a hint; none in others."""
    return node.body if isinstance(node, (ForEach, Prefetch)) else ()


def appends(node: Node, *kinds: type[ir.Expr]) -> bool:
    """Tell whether a node appends an expression of one of these classes."""
    return isinstance(node, Append) and isinstance(node.expr, kinds)


def kind_of(node: Node) -> str:
    """The name under which people see a node: that of its expression, if it appends one."""
    return type(node.expr if isinstance(node, Append) else node).__name__


def asks(node: Node) -> bool:
    """Tell whether the backend has to answer a node before its stream goes on."""
    return isinstance(node, Score) or (isinstance(node, Append) and node.expr.asks)


def text_of(node: Node) -> Value | None:
    """The text that a node appends; None if it appends none, or something else."""
    if isinstance(node, Append) and isinstance(node.expr, ir.Text):
        return valued(node.expr.value)
    return None


def text_node(id: int, stream: int, text: Value, line: Line | None = None) -> Append:
    """A node that appends a text."""
    return Append(id, stream, ir.Text(plain(text)), line=line)


def with_text(node: Node, text: Value) -> Append:
    """The same node with another text."""
    return text_node(node.id, node.stream, text, node.line)


def values_of(node: Node) -> Iterator[Value]:
    """The values that stand in a node's own fields, each with all it is made of."""
    for each in fields(node):
        yield from _values_in(getattr(node, each.name))


def _values_in(content: object) -> Iterator[Value]:
    if isinstance(content, Value):
        yield from walk(content)
    elif isinstance(content, tuple):
        for item in content:
            yield from _values_in(item)
    elif isinstance(content, ir.Expr):
        for each in fields(content):  # type: ignore[arg-type]
            yield from _values_in(getattr(content, each.name))


def map_values(content: Any, change: Callable[[Value], Value]) -> Any:
    """Copy the content of a field with every outermost value changed."""
    if isinstance(content, Value):
        return change(content)
    if isinstance(content, tuple):
        return tuple([map_values(item, change) for item in content])
    if isinstance(content, ir.Expr):
        held = {f.name: getattr(content, f.name) for f in fields(content)}  # type: ignore[arg-type]

        def plainly(value: Value) -> Any:
            return plain(change(value))

        return replace(content, **{k: map_values(v, plainly) for k, v in held.items()})  # type: ignore[type-var]
    return content


def sources_of(node: Node) -> tuple[int, ...]:
    """The ids of the nodes whose variables this node reads, those of its body included."""
    own = [value.source for value in values_of(node) if isinstance(value, Variable)]
    inner = [source for each in body_of(node) for source in sources_of(each)]
    return tuple(dict.fromkeys(own + inner))


def _with_bodies(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _with_bodies(body_of(node))


def _edges(nodes: tuple[Node, ...]) -> Iterator[Edge]:
    last: dict[int, int] = {}
    outer = {inner.id: node.id for node in nodes for inner in _with_bodies((node,))}
    branches: dict[int, list[int]] = {}
    stream_of = {node.id: node.stream for node in nodes}
    for node in nodes:
        touched = {node.stream, *(inner.stream for inner in _with_bodies(body_of(node)))}
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
