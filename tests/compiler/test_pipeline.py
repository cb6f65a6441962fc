from __future__ import annotations

import pytest

from sgl_mlx.compiler.graph.graph import Call, Gen, Graph, Prefetch, Sync, Text
from sgl_mlx.compiler.graph.values import Argument, Constant, Variable, concat
from sgl_mlx.compiler.pipeline import optimised, proposer
from sgl_mlx.compiler.reorder.by_model import ByModel
from sgl_mlx.compiler.reorder.mover import by_rules
from sgl_mlx.errors import ProgramError
from sgl_mlx.testing import ScriptedBackend

RULES = "Expand the tip into one paragraph. Use plain words and never more than five sentences."
GRAPH = Graph(
    "tips",
    nodes=(
        Text(0, 0, Constant("A tip for ")),
        Text(1, 0, Argument("topic")),
        Gen(2, 0, Constant("tip")),
        Sync(3, 0),
        Call(4, 1, "expand"),
        Text(5, 1, concat("Tip: ", Variable(2, "tip"), f"\n{RULES}\nParagraph:")),
        Gen(6, 1, Constant("paragraph")),
    ),
)


def test_prompts_stay_as_they_are_unless_someone_proposes() -> None:
    after = optimised(GRAPH)
    assert after.node(5) == GRAPH.node(5)
    assert not any(isinstance(node, Prefetch) for node in after)  # "Tip: " is not worth it


def test_the_passes_work_on_one_another() -> None:
    """Reordering gives the nested program a beginning that is then worth a hint."""
    kinds = [type(node) for node in optimised(GRAPH, by_rules)]
    assert kinds == [Text, Gen, Prefetch, Call, Text, Gen, Sync]


def test_optimising_again_changes_nothing() -> None:
    once = optimised(GRAPH, by_rules)
    assert optimised(once, by_rules) == once


def test_names_of_proposers() -> None:
    backend = ScriptedBackend()
    assert proposer(None) is None
    assert proposer("rules") is by_rules
    assert proposer("llm", backend) == ByModel(backend)


def test_a_model_needs_a_backend_and_other_names_are_refused() -> None:
    with pytest.raises(ProgramError, match="needs a backend"):
        proposer("llm")
    with pytest.raises(ProgramError, match='"rules" or "llm", got \'magic\''):
        proposer("magic")  # type: ignore[arg-type]
