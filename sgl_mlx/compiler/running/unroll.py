"""Loops over list arguments, written out for lists of given lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from sgl_mlx.compiler.graph.graph import ForEach, Graph, Node
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

Content = TypeVar("Content")


def unroll(graph: Graph, lengths: Mapping[str, int]) -> Graph:
    """The same graph without ForEach nodes.

    Args:
        lengths: how many texts each list argument has.
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
    """The nodes; `turns` gets the new ids of each node that stood in a loop."""
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

    changes = {
        field.name: _mapped(getattr(node, field.name), known)
        for field in fields(node)
        if field.name not in ("id", "stream", "line")
    }
    return replace(node, id=ids[node.id], **changes)


def _mapped(content: Any, change: Any) -> Any:
    if isinstance(content, tuple):
        return tuple(_mapped(item, change) for item in content)
    if not isinstance(content, Value):
        return content
    inner = {f.name: _mapped(getattr(content, f.name), change) for f in fields(content)}
    changed = replace(content, **inner) if inner else content
    if isinstance(changed, Concat):
        return concat(*changed.parts)
    return change(changed)
