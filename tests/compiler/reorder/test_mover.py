from __future__ import annotations

from typing import cast

import pytest

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Call,
    Fork,
    GetForkItem,
    Node,
    appends,
    text_of,
)
from sgl_mlx.compiler.graph.values import Argument, Constant, Value, Variable, concat
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.compiler.reorder.mover import gain, reorder
from sgl_mlx.lang import ir
from tests.compiler import nodes as make

DATA = concat("Question: ", Argument("question"), "\n")
RULES = Constant("Answer in one word. Never guess.")
MOVED = concat("Answer in one word. Never guess.\nQuestion: ", Argument("question"))
ASK = make.gen(90, 0, Constant("answer"))


def _turn(*texts: Value, stream: int = 0, begin: int = 0) -> tuple[Node, ...]:
    inner = [make.text(begin + 1 + i, stream, text) for i, text in enumerate(texts)]
    end = make.role_end(begin + 1 + len(inner), stream, "user")
    return (make.role_begin(begin, stream, "user"), *inner, end)


def _texts(graph: Graph) -> list[Value]:
    return [text_of(node) for node in graph if appends(node, ir.Text)]


def test_instructions_in_a_text_of_their_own_move_ahead_of_the_argument() -> None:
    graph = Graph("qa", nodes=(*_turn(DATA, RULES), ASK))
    after = reorder(graph)
    assert _texts(after) == [MOVED]
    assert [node.id for node in after] == [0, 2, 3, 90]


def test_constant_turns_before_do_not_hinder() -> None:
    system = (
        make.role_begin(50, 0, "system"),
        make.text(51, 0, Constant("Hi.")),
        make.role_end(52, 0, "system"),
    )
    graph = Graph("qa", nodes=(*system, *_turn(DATA, RULES), ASK))
    assert _texts(reorder(graph)) == [Constant("Hi."), MOVED]


@pytest.mark.parametrize(
    "between",
    [
        make.gen(40, 0, Constant("x")),
        make.select(40, 0, Constant("x"), (Constant("a"),)),
        Fork(40, 0, (0,)),
    ],
    ids=["gen", "select", "fork"],
)
def test_nothing_crosses_a_question_or_a_fork(between: Node) -> None:
    graph = Graph("qa", nodes=(make.text(1, 0, DATA), between, *_turn(RULES, begin=10), ASK))
    assert reorder(graph) == graph


def test_nothing_crosses_a_role() -> None:
    graph = Graph("qa", nodes=(*_turn(DATA), *_turn(RULES, begin=10), ASK))
    assert reorder(graph) == graph


def test_only_the_first_text_with_an_argument_is_touched() -> None:
    """No two runs share the text behind an argument, whatever its order."""
    graph = Graph("qa", nodes=(*_turn(DATA), *_turn(DATA, RULES, begin=10), ASK))
    assert reorder(graph) == merge(graph)


def test_text_that_the_model_continues_keeps_its_end() -> None:
    graph = Graph("qa", nodes=(make.text(1, 0, DATA), make.text(2, 0, RULES), ASK))
    (text,) = _texts(reorder(graph))
    assert text == concat("Answer in one word.\nQuestion: ", Argument("question"), "\nNever guess.")


def test_a_nested_program_is_reordered_around_its_variable() -> None:
    source = make.gen(0, 0, Constant("tip"))
    told = concat("Tip: ", Variable(0, "tip"), "\nExpand the tip into a paragraph.")
    nodes = (source, Call(1, 1, "expand"), *_turn(told, stream=1, begin=2))
    (text,) = _texts(reorder(Graph("tips", nodes=nodes)))
    assert text == concat("Expand the tip into a paragraph.\nTip: ", Variable(0, "tip"))


def test_a_branch_is_reordered_if_all_before_it_is_constant() -> None:
    def graph(shared: Value) -> Graph:
        fork = (make.text(70, 0, shared), Fork(71, 0, (0,)), GetForkItem(72, 1, 71, 0))
        return Graph("fork", nodes=(*fork, *_turn(DATA, RULES, stream=1, begin=10)))

    assert _texts(reorder(graph(Constant("Hi.")))) == [Constant("Hi."), MOVED]
    assert reorder(graph(Argument("name"))) == merge(graph(Argument("name")))


def test_text_that_goes_on_from_before_a_fork_is_left_alone() -> None:
    nodes = (make.text(0, 0, Constant("Tell ")), Fork(1, 0, (0,)), GetForkItem(2, 1, 1, 0))
    graph = Graph("fork", nodes=(*nodes, make.text(3, 1, concat("me. ", DATA, RULES)), ASK))
    assert reorder(graph) == graph


def test_characters_that_stand_for_slots_make_a_text_untouchable() -> None:
    graph = Graph("qa", nodes=_turn(DATA, Constant("Answer in one word. Never \ue000 guess.")))
    assert reorder(graph) == merge(graph)


def test_the_gain_is_counted_over_all_streams() -> None:
    graph = Graph("qa", nodes=(*_turn(DATA, RULES), ASK))
    words = gain(graph, reorder(graph), lambda text: len(text.split()))
    assert words == len(str(cast(Constant, RULES).value).split())
