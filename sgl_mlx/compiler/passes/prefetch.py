"""Prefetch: prompts of nested programs are prefilled while an earlier generation still runs.

This is the second optimisation of the SGLang paper (arXiv 2312.07104 v1, section 4.3.2). A nested
program that waits for a variable may have an opening that does not depend on the variable. The hint
for the opening stands after the first request that the nested program waits for, so that the
opening is prefilled while the model decodes the answer to that request.
"""

from __future__ import annotations

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Call,
    ForEach,
    Node,
    Prefetch,
    asks,
)
from sgl_mlx.compiler.passes.opening import copied, is_worth_it, opening


def prefetch(graph: Graph) -> Graph:
    """Copy the graph with a hint for each nested program whose opening can be prefilled early."""
    hints: dict[int, list[Node]] = {}
    seen = [_nameless(node.body) for node in graph if isinstance(node, Prefetch)]
    id = graph.next_id
    for stream in graph.streams:
        body, anchor = opening(graph, stream), _first_awaited(graph, stream)
        if anchor is None or _nameless(body) in seen or not is_worth_it(body):
            continue
        seen.append(_nameless(body))
        copies = copied(body, id + 1, anchor.stream)
        hints.setdefault(anchor.id, []).append(Prefetch(id, anchor.stream, copies))
        id += 1 + len(copies)
    return graph.with_nodes(hinted for node in graph for hinted in (node, *hints.get(node.id, ())))


def _nameless(body: tuple[Node, ...]) -> tuple[Node, ...]:
    return copied(body, 0, 0)


def _first_awaited(graph: Graph, stream: int) -> Node | None:
    """Return the first request before a nested program that the nested program waits for.

    Returns None if the nested program waits for no request or sends none, or if the stream is no
    nested program.
    """
    nodes = graph.nodes_of(stream)
    if not (nodes and isinstance(nodes[0], Call) and any(map(_asks, nodes))):
        return None
    before = _ancestors(graph, {node.id for node in nodes})
    own = {node.id for node in nodes}
    return next((n for n in graph if n.id in before - own and _asks(n)), None)


def _ancestors(graph: Graph, ids: set[int]) -> set[int]:
    before: dict[int, list[int]] = {}
    for edge in graph.edges():
        before.setdefault(edge.after, []).append(edge.before)
    found, left = set(ids), list(ids)
    while left:
        new = [id for id in before.get(left.pop(), ()) if id not in found]
        found.update(new)
        left += new
    return found


def _asks(node: Node) -> bool:
    inner = node.body if isinstance(node, ForEach) else ()
    return asks(node) or any(map(_asks, inner))
