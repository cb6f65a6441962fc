"""The nodes of a graph, and the values that stand in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from sgl_mlx.compiler.graph.values import Value, Variable, plain, valued, walk
from sgl_mlx.lang import ir

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


# -- questions about nodes ----------------------------------------------------------------------


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


def with_bodies(nodes: Iterable[Node]) -> Iterator[Node]:
    """Iterate over nodes and, behind each, the nodes of its body."""
    for node in nodes:
        yield node
        yield from with_bodies(body_of(node))
