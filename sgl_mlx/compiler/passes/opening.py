"""Openings: the part of a stream's prompt that is known before anything has been generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Call,
    Fork,
    GetForkItem,
    Node,
    Prefetch,
    Sync,
    appends,
    text_of,
    with_text,
)
from sgl_mlx.compiler.graph.values import (
    EMPTY,
    Argument,
    Concat,
    Constant,
    Element,
    Joined,
    Method,
    Value,
    concat,
    parts_of,
    walk,
)
from sgl_mlx.lang import ir

MIN_LENGTH = 64
"""Characters: fewer are computed as fast as they are fetched, or asked for."""

_SILENT = (Fork, Prefetch, Sync)
"""Nodes that write nothing and ask nothing, as far as their own stream's text goes."""
_GIVEN = (Argument, Element, Joined)
"""Values that a run has from the start."""


def opening(graph: Graph, stream: int) -> tuple[Node, ...]:
    """Texts and roles with which a stream begins, up to what only a model can tell.

    A branch begins with the text of the stream it came from. The last text may be cut: it then
    holds the parts before the first variable.
    """
    return tuple(_known(written(graph, stream), _GIVEN))


def constant_opening(graph: Graph, stream: int) -> tuple[Node, ...]:
    """As `opening`, up to the first argument as well: what every run has in common."""
    return tuple(_known(written(graph, stream), ()))


def is_worth_it(body: tuple[Node, ...]) -> bool:
    """Tell whether an opening is long, or holds an argument, so that a run decides its length."""
    return not all(map(is_spelt, texts_of(body))) or len(constant_text(body)) >= MIN_LENGTH


def copied(body: tuple[Node, ...], id: int, stream: int) -> tuple[Node, ...]:
    """Nodes like these, for the body of a hint in another stream, with ids from `id` on."""
    return tuple(replace(node, id=id + at, stream=stream) for at, node in enumerate(body))


def constant_text(nodes: tuple[Node, ...]) -> str:
    """The constant texts of some nodes, one after another, without what roles add."""
    values = (part for text in texts_of(nodes) for part in parts_of(text))
    return "".join(str(value.value) for value in values if isinstance(value, Constant))


def texts_of(nodes: Iterable[Node]) -> Iterator[Value]:
    """The texts that some nodes append, in order."""
    return (text for node in nodes if (text := text_of(node)) is not None)


def is_spelt(text: Value) -> bool:
    """Whether all of a text can be read off the graph."""
    return all(isinstance(part, Constant) for part in parts_of(text))


def written(graph: Graph, stream: int) -> Iterator[Node]:
    """The nodes of a stream, after those of the streams it was forked from.

    Left out is what begins a nested program or a branch, unless a branch begins at another
    position than that of the text before it.
    """
    nodes = graph.nodes_of(stream)
    if nodes and isinstance(nodes[0], GetForkItem):
        fork = graph.node(nodes[0].fork)
        for node in written(graph, fork.stream):
            if node.id == fork.id:
                break
            yield node
        if isinstance(fork, Fork) and fork.offsets[nodes[0].index]:
            yield nodes[0]
    began = bool(nodes) and isinstance(nodes[0], (Call, GetForkItem))
    yield from nodes[1:] if began else nodes


def _known(nodes: Iterable[Node], known: tuple[type[Value], ...]) -> Iterator[Node]:
    for node in nodes:
        text = text_of(node)
        if appends(node, ir.RoleBegin, ir.RoleEnd):
            yield node
        elif text is not None:
            begins = _known_parts(text, known)
            if begins == text:
                yield node
                continue
            if begins != EMPTY:
                yield with_text(node, begins)
            return
        elif not (isinstance(node, _SILENT) or appends(node, ir.VarScopeBegin, ir.VarScopeEnd)):
            return


def _known_parts(text: Value, known: tuple[type[Value], ...]) -> Value:
    parts = []
    for part in parts_of(text):
        if not all(isinstance(v, (Constant, Concat, Method, *known)) for v in walk(part)):
            break
        if isinstance(part, Method) and not known:
            break  # constant, but spelt out only when the graph runs
        parts.append(part)
    return concat(*parts)
