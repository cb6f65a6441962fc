"""Unrolling: loops over list arguments are written out for lists of given lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import ForEach, Node, map_values
from sgl_mlx.compiler.graph.values import (
    Concat,
    Constant,
    Element,
    LoopIndex,
    LoopItem,
    Value,
    Variable,
    concat,
)


def unroll(graph: Graph, lengths: Mapping[str, int]) -> Graph:
    """Copy the graph with every ForEach node replaced by its iterations.

    Args:
        lengths: the number of texts of each list argument, by name.
    """
    if not any(isinstance(node, ForEach) for node in graph):
        return graph
    turns: dict[int, list[int]] = {}
    nodes = tuple(_unrolled(graph, lengths, turns))
    reads = [id for source in graph.reads for id in turns.get(source, [source])]
    return replace(graph, nodes=nodes, reads=tuple(reads))


def _unrolled(
    graph: Graph, lengths: Mapping[str, int], turns: dict[int, list[int]]
) -> Iterator[Node]:
    """Iterate over the nodes; add the new ids of each node from a loop body to `turns`."""
    next_id = graph.next_id
    for node in graph:
        if not isinstance(node, ForEach):
            yield node
            continue
        turns.update({inner.id: [] for inner in node.body})
        for turn in range(lengths[node.argument]):
            ids = {inner.id: next_id + i for i, inner in enumerate(node.body)}
            next_id += len(ids)
            for inner in node.body:
                turns[inner.id].append(ids[inner.id])
                yield _turned(inner, node, turn, ids)


def _turned(node: Node, loop: ForEach, turn: int, ids: Mapping[int, int]) -> Node:
    def known(value: Value) -> Value:
        if isinstance(value, LoopItem) and value.loop == loop.id:
            return Element(loop.argument, turn)
        if isinstance(value, LoopIndex) and value.loop == loop.id:
            return Constant(str(value.start + turn))
        if isinstance(value, Variable):
            return replace(value, source=ids.get(value.source, value.source))
        return value

    change = partial(_unrolled_value, known=known)
    changes = {
        field.name: map_values(getattr(node, field.name), change)
        for field in fields(node)
        if field.name not in ("id", "stream", "line")
    }
    return replace(node, id=ids[node.id], **changes)


def _unrolled_value(value: Value, known: Callable[[Value], Value]) -> Value:
    held = {f.name: getattr(value, f.name) for f in fields(value)}
    inner = {k: map_values(v, partial(_unrolled_value, known=known)) for k, v in held.items()}
    changed = replace(value, **inner) if inner else value
    return concat(*changed.parts) if isinstance(changed, Concat) else known(changed)
