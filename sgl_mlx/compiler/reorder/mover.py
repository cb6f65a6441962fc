"""Code movement: instructions move ahead of arguments, so that runs share a longer prompt prefix.

This optimisation of the SGLang paper (arXiv 2312.07104 v1, section 4.3.2) is opt-in because it
changes prompts. It rewrites at most one text in each stream: the text with the first argument,
which ends at the next role, request to the model (`gen`, `select`) or fork. In this text, every
instruction moves ahead of the arguments unless the meaning might change, which the rules in `judge`
decide. No other order that these rules accept has more words before the first argument.
"""

from __future__ import annotations

from collections.abc import Callable

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Node, appends, text_of, with_text
from sgl_mlx.compiler.graph.values import Constant, Value, concat, parts_of
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.compiler.passes.opening import constant_opening, constant_text, is_spelt, written
from sgl_mlx.compiler.reorder.judge import Order, objections
from sgl_mlx.compiler.reorder.sentences import FIRST_SLOT, LAST_SLOT, SLOT
from sgl_mlx.lang import ir

CountTokens = Callable[[str], int]


def reorder(graph: Graph) -> Graph:
    """Copy the graph with texts merged and instructions moved ahead of the first argument."""
    graph = merge(graph)
    for stream in graph.streams:
        node = _first_open(graph, stream)
        text = text_of(node) if node else None
        if node and text is not None:
            better = with_text(node, _reordered(text, _continued(graph, node)))
            graph = graph.with_nodes(better if each.id == node.id else each for each in graph)
    return graph


def by_rules(text: str, continued: bool) -> str:
    """Return the text with all movable groups of sentences first, in their old order.

    A group is movable if it has no argument, and the judge does not object to moving it ahead of
    the groups that stay where they are.

    Args:
        text: a text in which a slot character (see `sentences`) stands for each argument.
        continued: True if the model continues right after the text.
    """
    order = Order(text, continued)
    moved: list[int] = []
    left: list[int] = []
    for i, group in enumerate(order.groups):
        free = group.constant and not any(order.objection(i, passed) for passed in left)
        (moved if free else left).append(i)
    return order.render(moved + left)


def gain(before: Graph, after: Graph, count: CountTokens) -> int:
    """Return how many tokens the constant prefixes of all streams gain from `before` to `after`.

    `count` returns the number of tokens in a text.
    """

    def total(graph: Graph) -> int:
        return sum(
            count(constant_text(constant_opening(graph, stream))) for stream in graph.streams
        )

    return total(after) - total(before)


def _reordered(value: Value, continued: bool) -> Value:
    """Reorder a text; unchanged if its constant prefix gets no longer or the judge objects."""
    slots: dict[str, Value] = {}
    text = _spelt(value, slots)
    if len(slots) != len(SLOT.findall(text)):
        return value  # the program's own text has slot characters
    proposed = by_rules(text, continued)
    longer = _constant_length(proposed) > _constant_length(text)
    right = longer and not objections(text, proposed, continued)
    return _value(proposed, slots) if right else value


def _constant_length(text: str) -> int:
    slot = SLOT.search(text)
    return slot.start() if slot else len(text)


# -- the text to be considered ----------------------------------------------------------------


def _first_open(graph: Graph, stream: int) -> Node | None:
    """Return the node whose text has a stream's first argument; None if the text must stay.

    The text must stay if a node other than text and roles comes before it, or if it continues
    another text, such as a text from before a fork.
    """
    before: Node | None = None
    for node in written(graph, stream):
        text = text_of(node)
        if text is not None and not is_spelt(text):
            own = node.stream == stream and not (before and appends(before, ir.Text))
            return node if own else None
        if not appends(node, ir.Text, ir.RoleBegin, ir.RoleEnd):
            return None
        before = node
    return None


def _continued(graph: Graph, last: Node) -> bool:
    nodes = graph.nodes_of(last.stream)
    following = nodes[nodes.index(last) + 1 :]
    return not (following and appends(following[0], ir.RoleEnd))


# -- text and values ----------------------------------------------------------------------------


def _spelt(value: Value, slots: dict[str, Value]) -> str:
    pieces = []
    for part in parts_of(value):
        if isinstance(part, Constant):
            pieces.append(str(part.value))
        else:
            slot = chr(min(ord(FIRST_SLOT) + len(slots), ord(LAST_SLOT)))
            slots[slot] = part
            pieces.append(slot)
    return "".join(pieces)


def _value(text: str, slots: dict[str, Value]) -> Value:
    constants = SLOT.split(text)
    values = [slots[slot] for slot in SLOT.findall(text)]
    return concat(
        constants[0],
        *(part for pair in zip(values, constants[1:], strict=True) for part in pair),
    )
