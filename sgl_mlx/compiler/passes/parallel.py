"""Parallel streams: the run sends every request that it can before it waits for anything.

A run goes through the nodes in order. Most nodes only submit. A few wait (`WAITING`), and all nodes
after a waiting node wait with it, whether they depend on it or not. The interpreter has the same
limit: a Python body stops where it reads a variable. This pass moves nodes of other streams ahead
of a waiting node unless an edge forbids it. Among several waiting nodes, the node that waits for
the shortest chain of answers of the model comes first.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Break,
    ForEach,
    Fork,
    GetForkItem,
    Join,
    Node,
    Score,
    SetVariable,
    Sync,
    asks,
    body_of,
)

WAITING = (Fork, Join, Sync, SetVariable, Score)


def parallel(graph: Graph) -> Graph:
    """Reorder the nodes of a graph so that independent streams start together."""
    after: dict[int, list[int]] = defaultdict(list)
    missing = dict.fromkeys((node.id for node in graph), 0)
    for before, id in {*((edge.before, edge.after) for edge in graph.edges()), *_joined(graph)}:
        after[before].append(id)
        missing[id] += 1
    place = {node.id: at for at, node in enumerate(graph)}
    rounds = dict.fromkeys(place, 0)
    ready = [_urgency(node, 0, at) for at, node in enumerate(graph) if not missing[node.id]]
    heapq.heapify(ready)
    order: list[Node] = []
    while ready:
        node = graph.nodes[heapq.heappop(ready)[-1]]
        order.append(node)
        for id in after[node.id]:
            rounds[id] = max(rounds[id], rounds[node.id] + _asks(node))
            missing[id] -= 1
            if not missing[id]:
                heapq.heappush(ready, _urgency(graph.node(id), rounds[id], place[id]))
    return graph.with_nodes(order)


def _joined(graph: Graph) -> Iterator[tuple[int, int]]:
    """Iterate over pairs of ids: a Join, and a node of its branches that has to stay after it."""
    streams: dict[int, set[int]] = defaultdict(set)
    joins: list[Join] = []
    for node in graph:
        touched = {node.stream, *(inner.stream for inner in body_of(node))}
        yield from ((join.id, node.id) for join in joins if touched & streams[join.fork])
        if isinstance(node, GetForkItem):
            streams[node.fork].add(node.stream)
        if isinstance(node, Join):
            joins.append(node)


def _urgency(node: Node, rounds: int, at: int) -> tuple[bool, bool, int, int]:
    """Return a sort key: nodes that submit come first, then nodes that wait, then a Break.

    Waiting nodes are sorted by `rounds`, the number of answers needed one after another, then by
    their position `at` in the graph.
    """
    return isinstance(node, Break), _waits(node), rounds if _waits(node) else 0, at


def _waits(node: Node) -> bool:
    inner = node.body if isinstance(node, ForEach) else ()
    return isinstance(node, WAITING) or any(map(_waits, inner))


def _asks(node: Node) -> int:
    if isinstance(node, ForEach):
        return sum(map(_asks, node.body))
    return int(asks(node))
