"""Structural code movement: fewer nodes, the same prompts token for token. Always on.

Neighbouring texts of a stream become one node and empty ones go. Boundaries between texts do not
reach the tokenizer (`Transcript.prompt` joins them), so this changes no token.
"""

from __future__ import annotations

from dataclasses import replace

from sgl_mlx.compiler.graph.graph import (
    Call,
    ForEach,
    Gen,
    GetForkItem,
    Graph,
    Join,
    Node,
    Prefetch,
    RoleEnd,
    Select,
    Text,
    body_of,
)
from sgl_mlx.compiler.graph.values import EMPTY, concat

_CLOSED = (Call, Gen, RoleEnd, Select)
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
        if isinstance(node, Text):
            if isinstance(before, Text):
                del merged[before.id]
                node = replace(node, text=concat(before.text, node.text), line=before.line)
            elif node.text == EMPTY and isinstance(before, _CLOSED):
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
