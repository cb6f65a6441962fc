"""Merging: fewer nodes for the same prompts, token for token. The pass is always on.

Neighbouring texts of a stream become one node, and empty texts are removed. No token changes, since
boundaries between texts do not reach the tokenizer (`Transcript.prompt` joins them).
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
"""Expressions after which an empty text can be removed.

Elsewhere an empty text may have an effect: at the beginning of a turn it counts as text of the
program. The transcript then adds the text that the model would otherwise have to generate first
(`Opening.owed`).
"""


def merge(graph: Graph) -> Graph:
    """Copy the graph with neighbouring texts joined, also inside loops and hints."""
    return graph.with_nodes(_merged(graph.nodes))


def _merged(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Join texts; a joined text takes the place of its last part, after all that it depends on."""
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
        if isinstance(node, Join):  # later text of a branch may not move ahead of its Join
            last.update(dict.fromkeys(branches.get(node.fork, ()), node))
        if not isinstance(node, Prefetch):
            streams = (node.stream, *(inner.stream for inner in body_of(node)))
            last.update(dict.fromkeys(streams, node))
    return tuple(merged.values())


def _closed(node: Node) -> bool:
    return isinstance(node, Call) or appends(node, *_CLOSED)
