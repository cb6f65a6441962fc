"""Code movement: instructions move ahead of arguments, so that more of a prompt is shared.

The optimisation of the SGLang paper (arXiv 2312.07104 v1, section 4.3.2), opt-in because it changes
prompts. In each stream the one text that ends its constant beginning is considered: from there to
the next role, question or fork. A *proposer* says in which order its sentences might stand;
`check.objections` has the last word on whatever it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sgl_mlx.compiler.graph import Graph, RoleBegin, RoleEnd, Text
from sgl_mlx.compiler.passes.check import Order, objections
from sgl_mlx.compiler.passes.leading import constant_opening, text_of, written
from sgl_mlx.compiler.passes.sentences import FIRST_SLOT, LAST_SLOT, SLOT
from sgl_mlx.compiler.values import Constant, Value, concat, parts_of

Proposer = Callable[[str, bool], str]
"""(text with slots, whether the model goes on right after it) -> the text in another order."""

CountTokens = Callable[[str], int]


def reorder(graph: Graph, propose: Proposer) -> Graph:
    """The graph with longer constant beginnings, where the proposer finds some that are right."""
    for stream in graph.streams:
        block = _first_block(graph, stream)
        if block:
            graph = _rewritten(graph, block, _continued(graph, block[-1]), propose)
    return graph


def by_rules(text: str, continued: bool) -> str:
    """The proposer that needs no model: move up whatever the judge lets pass."""
    order = Order(text, continued)
    moved: list[int] = []
    left: list[int] = []
    for i, group in enumerate(order.groups):
        free = group.constant and not any(order.objection(i, passed) for passed in left)
        (moved if free else left).append(i)
    return order.render(moved + left)


def gain(before: Graph, after: Graph, count: CountTokens) -> int:
    """By how many tokens the constant beginnings of all streams have grown."""

    def total(graph: Graph) -> int:
        return sum(count(text_of(constant_opening(graph, stream))) for stream in graph.streams)

    return total(after) - total(before)


def _rewritten(graph: Graph, block: Sequence[Text], continued: bool, propose: Proposer) -> Graph:
    slots: dict[str, Value] = {}
    text = "".join(_spelt(node.text, slots) for node in block)
    if len(slots) != len(SLOT.findall(text)):
        return graph  # slot characters of the program's own
    proposed = propose(text, continued)
    longer = _constant_length(proposed) > _constant_length(text)
    if not longer or objections(text, proposed, continued):
        return graph
    # At the place of the last one all that the texts need is there.
    new = replace(block[-1], text=_value(proposed, slots))
    old = {node.id for node in block}
    kept = (new if node.id == new.id else node for node in graph)
    return graph.with_nodes(node for node in kept if node is new or node.id not in old)


def _constant_length(text: str) -> int:
    slot = SLOT.search(text)
    return slot.start() if slot else len(text)


# -- the text to be considered ----------------------------------------------------------------


def _first_block(graph: Graph, stream: int) -> tuple[Text, ...]:
    """The texts among which a stream ceases to be constant; none if a question comes first."""
    constant = set(constant_opening(graph, stream))
    own = {node.id for node in graph.nodes_of(stream)}
    block: list[Text] = []
    for node in written(graph, stream):
        if isinstance(node, Text):
            block.append(node)
        elif any(text not in constant for text in block):
            break
        elif not isinstance(node, (RoleBegin, RoleEnd)):
            return ()
        else:
            block = []
    whole = [text for text in block if text.id in own]
    ends_it = any(text not in constant for text in block)
    return tuple(block) if ends_it and len(whole) == len(block) else ()


def _continued(graph: Graph, last: Text) -> bool:
    nodes = graph.nodes_of(last.stream)
    following = nodes[nodes.index(last) + 1 :]
    return not (following and isinstance(following[0], RoleEnd))


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
