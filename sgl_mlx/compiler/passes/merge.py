"""Structural code movement: fewer nodes, the same prompts token for token. Always on.

Neighbouring texts of a stream become one node and empty ones go. Boundaries between texts do not
reach the tokenizer (`Transcript.prompt` joins them), so this changes no token.
"""

from __future__ import annotations

from dataclasses import replace

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Call,
    ForEach,
    GetForkItem,
    Join,
    Node,
    Prefetch,
    appends,
    body_of,
    text_of,
    with_text,
)
from sgl_mlx.compiler.graph.values import EMPTY, concat
from sgl_mlx.lang import ir

_CLOSED = (ir.Gen, ir.SeparateReasoning, ir.Select, ir.RoleEnd)
"""After these an empty text does nothing. At the beginning of a turn it does: what the template
leaves to the model there (`Opening.owed`) is then written by the program."""


def merge(graph: Graph) -> Graph:
    """The graph with neighbouring texts joined, in loops and hints as well."""
    return graph.with_nodes(_merged(graph.nodes))


def _merged(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """A joined text stands where its last part stood: all that it reads is there by then."""
    last: dict[int, Node] = {}
    merged: dict[int, Node] = {}
    branches: dict[int, list[int]] = {}
    for node in nodes:
        if isinstance(node, (ForEach, Prefetch)):
            node = replace(node, body=_merged(node.body))
        before = last.get(node.stream)
        text = text_of(node)
        if text is not None:
            begun = text_of(before) if before else None
            if before and begun is not None:
                del merged[before.id]
                node = replace(with_text(node, concat(begun, text)), line=before.line)
            elif text == EMPTY and before and _closed(before):
                continue
        merged[node.id] = node
        if isinstance(node, GetForkItem):
            branches.setdefault(node.fork, []).append(node.stream)
        if isinstance(node, Join):  # brings back what its branches have written by then
            last.update(dict.fromkeys(branches.get(node.fork, ()), node))
        if not isinstance(node, Prefetch):
            streams = (node.stream, *(inner.stream for inner in body_of(node)))
            last.update(dict.fromkeys(streams, node))
    return tuple(merged.values())


def _closed(node: Node) -> bool:
    return isinstance(node, Call) or appends(node, *_CLOSED)
