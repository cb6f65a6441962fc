from __future__ import annotations

from functools import reduce

import pytest

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Call, Prefetch, Sync, kind_of
from sgl_mlx.compiler.graph.values import Argument, Constant, Variable, concat
from sgl_mlx.compiler.pipeline import Reorder, standard_passes
from sgl_mlx.errors import ProgramError
from tests.compiler import nodes as make

RULES = "Expand the tip into one paragraph. Use plain words and never more than five sentences."
GRAPH = Graph(
    "tips",
    nodes=(
        make.text(0, 0, Constant("A tip for ")),
        make.text(1, 0, Argument("topic")),
        make.gen(2, 0, Constant("tip")),
        Sync(3, 0),
        Call(4, 1, "expand"),
        make.text(5, 1, concat("Tip: ", Variable(2, "tip"), f"\n{RULES}\nParagraph:")),
        make.gen(6, 1, Constant("paragraph")),
    ),
)


def optimised(graph: Graph, reorder: Reorder = None) -> Graph:
    return reduce(lambda made, each: each(made), standard_passes(reorder), graph)


def test_prompts_stay_as_they_are_unless_asked() -> None:
    after = optimised(GRAPH)
    assert after.node(5) == GRAPH.node(5)
    assert not any(isinstance(node, Prefetch) for node in after)  # "Tip: " is not worth it


def test_the_passes_work_on_one_another() -> None:
    """Reordering gives the nested program a beginning that is then worth a hint."""
    kinds = [kind_of(node) for node in optimised(GRAPH, "rules")]
    assert kinds == ["Text", "Gen", "Prefetch", "Call", "Text", "Gen", "Sync"]


def test_optimising_again_changes_nothing() -> None:
    once = optimised(GRAPH, "rules")
    assert optimised(once, "rules") == once


def test_an_unknown_way_to_reorder_is_refused() -> None:
    with pytest.raises(ProgramError, match="None or \"rules\", got 'magic'"):
        standard_passes("magic")  # type: ignore[arg-type]
