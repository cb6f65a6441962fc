from __future__ import annotations

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import Call, Fork, GetForkItem, Node
from sgl_mlx.compiler.graph.values import Argument, Constant, Method, Variable, concat
from sgl_mlx.compiler.passes.opening import constant_opening, constant_text, opening, written
from tests.compiler import nodes as make

FORKED = Graph(
    "forked",
    nodes=(
        make.text(0, 0, Constant("All. ")),
        Fork(1, 0, (0, 7)),
        GetForkItem(2, 1, 1, 0),
        GetForkItem(3, 2, 1, 1),
        make.text(4, 1, concat("One ", Argument("x"), " two ")),
        make.text(5, 2, Constant("Far.")),
        make.gen(6, 1, Constant("a")),
        make.text(7, 0, Constant("Late.")),
    ),
)


def test_a_constant_opening_ends_at_the_first_argument() -> None:
    assert constant_text(constant_opening(FORKED, 1)) == "All. One "


def test_an_opening_goes_on_to_the_first_question() -> None:
    assert opening(FORKED, 1) == (FORKED.nodes[0], FORKED.nodes[4])


def test_a_branch_at_another_position_shares_only_what_is_before_its_fork() -> None:
    assert constant_text(constant_opening(FORKED, 2)) == "All. "


def test_a_branch_has_nothing_of_what_follows_its_fork() -> None:
    assert [node.id for node in written(FORKED, 1)] == [0, 4, 6]


def test_the_stream_that_was_forked_goes_on() -> None:
    assert constant_text(constant_opening(FORKED, 0)) == "All. Late."


def test_a_nested_program_begins_on_its_own_and_ends_at_a_variable() -> None:
    nodes: tuple[Node, ...] = (
        make.gen(0, 0, Constant("tip")),
        Call(1, 1, "expand"),
        make.role_begin(2, 1, "user"),
        make.text(3, 1, concat("Expand: ", Variable(0, "tip"), ".")),
        make.role_end(4, 1, "user"),
    )
    graph = Graph("tips", nodes=nodes)
    assert opening(graph, 1) == (nodes[2], make.text(3, 1, Constant("Expand: ")))
    assert opening(graph, 0) == ()


def test_a_method_of_an_argument_is_known_at_run_time_only() -> None:
    text = concat("a", Method("upper", Argument("x")), "b")
    graph = Graph("upper", nodes=(make.text(0, 0, text),))
    assert constant_text(constant_opening(graph, 0)) == "a"
    assert opening(graph, 0) == graph.nodes
