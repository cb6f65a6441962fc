"""Openings: the part of a stream's prompt that is known before anything is generated."""

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
"""The least number of characters for which prefilling an opening early is worth a request."""

_SILENT = (Fork, Prefetch, Sync)
"""Nodes that neither write to nor ask in their own stream."""
_GIVEN = (Argument, Element, Joined)
"""Values that are known from the start of a run."""


def opening(graph: Graph, stream: int) -> tuple[Node, ...]:
    """Return the texts and roles with which a stream begins, up to the first generated value.

    A branch begins with the text of the stream that it was forked from. The last text may be cut
    before its first variable.
    """
    return tuple(_known(written(graph, stream), _GIVEN))


def constant_opening(graph: Graph, stream: int) -> tuple[Node, ...]:
    """Return the opening that a stream has in every run: it ends before the first argument."""
    return tuple(_known(written(graph, stream), ()))


def is_worth_it(body: tuple[Node, ...]) -> bool:
    """Tell whether to prefill an opening: it is at least `MIN_LENGTH` long, or has an argument."""
    return not all(map(is_spelt, texts_of(body))) or len(constant_text(body)) >= MIN_LENGTH


def copied(body: tuple[Node, ...], id: int, stream: int) -> tuple[Node, ...]:
    """Copy nodes into another stream, with ids from `id` on."""
    return tuple(replace(node, id=id + at, stream=stream) for at, node in enumerate(body))


def constant_text(nodes: tuple[Node, ...]) -> str:
    """Join the constant texts of some nodes, without the text of roles."""
    values = (part for text in texts_of(nodes) for part in parts_of(text))
    return "".join(str(value.value) for value in values if isinstance(value, Constant))


def texts_of(nodes: Iterable[Node]) -> Iterator[Value]:
    """Iterate over the texts that some nodes append, in order."""
    return (text for node in nodes if (text := text_of(node)) is not None)


def is_spelt(text: Value) -> bool:
    """Tell whether a text consists of constants only."""
    return all(isinstance(part, Constant) for part in parts_of(text))


def written(graph: Graph, stream: int) -> Iterator[Node]:
    """Iterate over the nodes that write a stream's prompt, including those before its fork.

    The node that begins a branch or a nested program is left out, unless the branch has a position
    offset.
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
            break  # a constant method call, evaluated only when the graph runs
        parts.append(part)
    return concat(*parts)
