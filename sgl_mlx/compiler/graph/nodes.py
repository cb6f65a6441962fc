"""The nodes of a graph, and functions that read and change the values inside a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from sgl_mlx.compiler.graph.values import Value, Variable, plain, valued, walk
from sgl_mlx.lang import ir

JoinMode = Literal["gather_variable", "concate_and_append"]


@dataclass(frozen=True)
class Line:
    """A line of a program's source; errors of a node name its line."""

    function: str
    file: str
    number: int


@dataclass(frozen=True)
class Node:
    """A step of a program: its id, the number of the stream that it belongs to, its source line."""

    id: int
    stream: int
    line: Line | None = field(default=None, kw_only=True, compare=False)


# -- the language -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Append(Node):
    """A node that appends an expression of the language to its stream; never an `ExprList`.

    Where an expression holds text (a name, a choice, the text itself), a symbol of
    `graph/values.py` may take its place. Constants are plain Python values.
    """

    expr: ir.Expr


@dataclass(frozen=True)
class Score(Node):
    """A decision between choices, as in `select`, that appends nothing to the stream.

    A Variable with this node as its source holds the choice.

    Attributes:
        method: a key of `CHOICES_METHODS`.
    """

    choices: tuple[Value, ...]
    method: str = "token_length_normalized"


@dataclass(frozen=True)
class SetVariable(Node):
    """An assignment to a variable: `s[name] = value`."""

    name: Value
    value: Value


# -- streams ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fork(Node):
    """A fork of a stream into branches; a `GetForkItem` begins each branch.

    Attributes:
        offsets: for each branch, the number of positions to skip before its new text.
    """

    offsets: tuple[int, ...]


@dataclass(frozen=True)
class GetForkItem(Node):
    """The first node of a branch: branch number `index` of the Fork node with id `fork`."""

    fork: int
    index: int


@dataclass(frozen=True)
class Join(Node):
    """The end of a fork: the stream that forked takes over the results of its branches.

    Attributes:
        fork: the id of the Fork node.
        mode: "gather_variable" takes over variables, "concate_and_append" appends the texts.
    """

    fork: int
    mode: JoinMode = "gather_variable"


@dataclass(frozen=True)
class Call(Node):
    """The beginning of a nested program: an empty stream on the default backend.

    Attributes:
        program: the name of the nested program.
        sampling: the sampling parameters of the call.
    """

    program: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Return(Node):
    """The value that a nested program returned; `Graph.result` has that of the program itself."""

    value: Value


@dataclass(frozen=True)
class Sync(Node):
    """A wait until all earlier nodes of the stream have finished."""


# -- hints and control --------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefetch(Node):
    """A hint that another stream will soon send a prompt that begins with `body`.

    `body` writes the prompt from an empty stream. It holds only Text and roles, and reads no
    variable. The hint changes no stream; its own field `stream` only fixes its place in the order
    of the nodes.
    """

    body: tuple[Node, ...]


@dataclass(frozen=True)
class ForEach(Node):
    """A loop that runs its body once for each text of the list argument `argument`.

    The loop is unrolled when the graph runs. The body appends to streams that began before the
    loop. In the body, a LoopItem or LoopIndex with this node's id stands for the current text or
    its index. Only nodes of the same iteration may read variables that the body sets.
    """

    argument: str
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Break(Node):
    """The end of a graph that covers only a part of its program: the Python body takes over here.

    Attributes:
        code: the source text of the line.
        reason: what on that line depends on the run.
    """

    code: str
    reason: str


# -- questions about nodes ----------------------------------------------------------------------


def body_of(node: Node) -> tuple[Node, ...]:
    """Return the nodes inside a loop or a hint; an empty tuple for any other node."""
    return node.body if isinstance(node, (ForEach, Prefetch)) else ()


def appends(node: Node, *kinds: type[ir.Expr]) -> bool:
    """Tell whether a node appends an expression of one of the classes `kinds`."""
    return isinstance(node, Append) and isinstance(node.expr, kinds)


def kind_of(node: Node) -> str:
    """Return the kind of a node: the class of the expression it appends, or its own class."""
    return type(node.expr if isinstance(node, Append) else node).__name__


def asks(node: Node) -> bool:
    """Tell whether a node needs an answer of the backend before its stream can continue."""
    return isinstance(node, Score) or (isinstance(node, Append) and node.expr.asks)


def text_of(node: Node) -> Value | None:
    """Return the text that a node appends; None if the node appends no `Text`."""
    if isinstance(node, Append) and isinstance(node.expr, ir.Text):
        return valued(node.expr.value)
    return None


def text_node(id: int, stream: int, text: Value, line: Line | None = None) -> Append:
    """Make a node that appends a text."""
    return Append(id, stream, ir.Text(plain(text)), line=line)


def with_text(node: Node, text: Value) -> Append:
    """Return a node that appends another text, with the id, stream and line of `node`."""
    return text_node(node.id, node.stream, text, node.line)


def values_of(node: Node) -> Iterator[Value]:
    """Iterate over the values in a node's own fields, each followed by the values inside it."""
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
    """Copy the content of a node's field, with `change` applied to each value in it.

    `change` gets outermost values only; it has to apply itself to the values inside them.
    """
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
    """Return the ids of the nodes whose variables this node or its body reads."""
    own = [value.source for value in values_of(node) if isinstance(value, Variable)]
    inner = [source for each in body_of(node) for source in sources_of(each)]
    return tuple(dict.fromkeys(own + inner))


def with_bodies(nodes: Iterable[Node]) -> Iterator[Node]:
    """Iterate over nodes, each followed by the nodes of its body."""
    for node in nodes:
        yield node
        yield from with_bodies(body_of(node))
