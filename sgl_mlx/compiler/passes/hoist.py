"""Hoisting: what all branches of a fork begin with is computed once, before them. Always on.

The text itself stays in the branches, for in front of the fork the forked stream would hold it as
well. What moves is the work: the interpreter has the text before a fork computed ahead of its
branches (the paper's frontend hint), and a Hoist has it computed together with what they all go on
with. Every prompt stays what it was, token for token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, takewhile

from sgl_mlx.compiler.graph.graph import Fork, GetForkItem, Graph, Hoist, Node, Text
from sgl_mlx.compiler.graph.values import Constant, concat, parts_of
from sgl_mlx.compiler.passes.opening import copied, is_worth_it, own_opening, text_of


def hoist(graph: Graph) -> Graph:
    """The graph with a hint before each fork whose branches begin alike."""
    nodes: list[Node] = []
    last: dict[int, Node] = {}
    id = graph.next_id
    for node in graph:
        if isinstance(node, Fork) and not isinstance(last.get(node.stream), Hoist):
            body = copied(_common_opening(graph, node), id + 1, node.stream)
            if is_worth_it(body, len(node.offsets) - 1):
                nodes.append(Hoist(id, node.stream, body, line=node.line))
                id += 1 + len(body)
        nodes.append(node)
        last[node.stream] = node
    return graph.with_nodes(nodes)


def _common_opening(graph: Graph, fork: Fork) -> tuple[Node, ...]:
    """Nothing for a single branch, or for some that go on at another position."""
    branches = [n.stream for n in graph if isinstance(n, GetForkItem) and n.fork == fork.id]
    if len(branches) < max(2, len(fork.offsets)) or any(fork.offsets):
        return ()
    openings = [_pieces(own_opening(graph, branch)) for branch in branches]
    return tuple(_merged(_common(openings)))


def _pieces(nodes: tuple[Node, ...]) -> Iterator[Node]:
    """Each part of a text as a node; none with a place of its own, so that equal is equal."""
    for node in nodes:
        if isinstance(node, Text):
            yield from (Text(0, 0, part) for part in parts_of(node.text))
        else:
            yield replace(node, id=0, stream=0)


def _common(branches: Iterable[Iterator[Node]]) -> Iterator[Node]:
    for first, *others in zip(*branches, strict=False):
        if any(piece != first for piece in others):
            text = _same_letters([text_of((piece,)) for piece in (first, *others)])
            yield from [Text(0, 0, Constant(text))] if text else []
            return
        yield first


def _same_letters(texts: Iterable[str]) -> str:
    columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in columns)


def _merged(pieces: Iterable[Node]) -> Iterator[Node]:
    for _, group in groupby(pieces, type):
        nodes = list(group)
        texts = [node.text for node in nodes if isinstance(node, Text)]
        yield from [Text(0, 0, concat(*texts))] if texts else nodes
