"""A program as a value: nodes in an order in which they may run.

A `Graph` is a tuple of frozen nodes. Each node appends to one *stream* (a prompt; stream 0 is the
program's own `s`), and everything it needs comes before it. There are two kinds of edges:

- *within a stream*, from each node to the next one of the same stream: the order of its text;
- *between streams*, from the node that gives a variable its value to those that read it
  (`Variable(source=...)`), from a Fork to its branches and from the branches to their Join.

A stream begins with a GetForkItem (a branch) or a Call (a nested program, traced into this graph);
only stream 0 begins with nothing. Arguments and variables occur inside values
(`sgl_mlx.compiler.values`): the text of a Text node, the names and choices of Gen and Select. All
else is constant, so a graph knows its prompts up to what only a run can tell.

Passes are functions Graph -> Graph. What they may rely on, and must keep:

- `id`s are unique within a graph, nested bodies included; ids and stream numbers are names, not
  positions. A pass gives new nodes ids from `graph.next_id` on and keeps the others, because a
  Variable points to its source by id.
- The order of nodes of one stream is the order of its text. Nodes of different streams may change
  places as long as no edge points backwards. Hoist, Fork, Join, Sync, SetVariable and Score wait
  while the graph runs (as they do in the language); all other nodes only submit.
- Break, if there is one, stands last: from there on the Python body is interpreted.

`show.py` draws graphs, `serialise.py` reads and writes them, `execute.py` runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from sgl_mlx.compiler.sglang_names import TracedNames
from sgl_mlx.compiler.values import NONE, Value, Variable, walk
from sgl_mlx.lang.ir import Role

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
    """What all nodes have: a name, the stream they belong to, and where the program says so."""

    id: int
    stream: int
    line: Line | None = field(default=None, kw_only=True, compare=False)


# -- text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text(Node):
    """Text of the program's own: a Constant, an Argument, a Variable, or a Concat of them."""

    text: Value


@dataclass(frozen=True)
class Gen(Node):
    """A continuation by the model; `sampling` holds only what the program gave."""

    name: Value
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SeparateReasoning(Gen):
    """A `Gen` whose reasoning part goes to the variable `<name>_reasoning_content`."""

    model_type: str | None = None


@dataclass(frozen=True)
class Select(Node):
    """The likeliest of the choices; `method` is a name in `sgl_mlx.lang.choices`."""

    name: Value
    choices: tuple[Value, ...]
    method: str = "token_length_normalized"
    temperature: float = 0.0


@dataclass(frozen=True)
class Score(Node):
    """What `select` would decide, without appending it; a Variable of it is the decision."""

    choices: tuple[Value, ...]
    method: str = "token_length_normalized"


@dataclass(frozen=True)
class Image(Node):
    """An image: a path, constant or an argument."""

    source: Value


@dataclass(frozen=True)
class RoleBegin(Node):
    role: Role


@dataclass(frozen=True)
class RoleEnd(Node):
    role: Role


# -- variables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class VarScopeBegin(Node):
    name: Value


@dataclass(frozen=True)
class VarScopeEnd(Node):
    name: Value


@dataclass(frozen=True)
class SetVariable(Node):
    """`s[name] = value`."""

    name: Value
    value: Value


# -- streams ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fork(Node):
    """Branches of this stream, each position offset giving one; `GetForkItem` takes them up."""

    offsets: tuple[int, ...]


@dataclass(frozen=True)
class GetForkItem(Node):
    """The beginning of a branch: copy `index` of the node `fork`."""

    fork: int
    index: int


@dataclass(frozen=True)
class Join(Node):
    """Branches of the node `fork`, all of them, brought back to the stream they came from."""

    fork: int
    mode: JoinMode = "gather_variable"


@dataclass(frozen=True)
class Call(Node):
    """The beginning of a nested program: a stream with nothing in it, on the default backend."""

    program: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Return(Node):
    """What a nested program returned; a Graph keeps that of its own program as `result`."""

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
class Hoist(Node):
    """A hint: all branches of the fork that comes next go on with what `body` writes.

    It is computed once, after the text of the stream so far, and waited for, as that text is at a
    fork. `body` is as in a Prefetch; running it changes no stream.
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
"""What JSON can say, and tuples."""


@dataclass(frozen=True)
class Parameter:
    """What a graph takes under a name.

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
class Graph(TracedNames):
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
        """What has to happen before what; nodes in loops count as their ForEach."""
        return tuple(_edges(self.nodes))

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """The same program made of other nodes."""
        return replace(self, nodes=tuple(nodes))


def body_of(node: Node) -> tuple[Node, ...]:
    """The nodes inside a loop or a hint; none in others."""
    return node.body if isinstance(node, (ForEach, Prefetch, Hoist)) else ()


def values_of(node: Node) -> Iterator[Value]:
    """The values that stand in a node's own fields, each with all it is made of."""
    for each in fields(node):
        content = getattr(node, each.name)
        for value in content if isinstance(content, tuple) else (content,):
            if isinstance(value, Value):
                yield from walk(value)


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
