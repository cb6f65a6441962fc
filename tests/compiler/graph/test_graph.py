"""Graphs as values: their edges, streams and bodies."""

from __future__ import annotations

import pytest

from sgl_mlx.compiler.graph.graph import Edge, Graph, Parameter
from sgl_mlx.compiler.graph.nodes import (
    Break,
    Call,
    ForEach,
    Fork,
    GetForkItem,
    Join,
    Prefetch,
    appends,
    body_of,
    sources_of,
    text_of,
    values_of,
)
from sgl_mlx.compiler.graph.values import (
    EMPTY,
    Argument,
    Concat,
    Constant,
    Element,
    ListOf,
    LoopIndex,
    LoopItem,
    Method,
    Variable,
    concat,
    is_constant,
    walk,
)
from sgl_mlx.compiler.running.unroll import unroll
from sgl_mlx.lang import ir
from tests.compiler import nodes as make

NAME = Constant("x")


def forked() -> Graph:
    """A fork of two, each with a gen, joined; a called program that reads the first branch."""
    nodes = (
        make.text(0, 0, Argument("topic")),
        Fork(1, 0, (0, 0)),
        GetForkItem(2, 1, 1, 0),
        GetForkItem(3, 2, 1, 1),
        make.gen(4, 1, NAME),
        make.gen(5, 2, NAME),
        Call(6, 3, "other"),
        make.text(7, 3, Variable(4, "x")),
        Join(8, 0, 1),
        make.text(9, 0, concat("a", Variable(4, "x"), Variable(5, "x"))),
    )
    return Graph("p", (Parameter("topic", "text"),), nodes)


def loop() -> Graph:
    turn = (
        make.text(2, 0, concat(LoopIndex(1, 1), ". ", LoopItem(1))),
        make.gen(3, 0, concat("x", LoopIndex(1, 1))),
        make.text(4, 0, concat("so ", Variable(3, "{...}"), "!")),
    )
    nodes = (make.gen(0, 0, NAME), ForEach(1, 0, "items", turn), make.text(5, 0, Variable(0, "x")))
    return Graph("p", (Parameter("items", "texts"),), nodes, reads=(0, 3))


def test_edges_within_a_stream_follow_its_order() -> None:
    inside = [e for e in forked().edges() if not e.between_streams]
    assert [(e.before, e.after) for e in inside] == [(0, 1), (2, 4), (3, 5), (6, 7), (1, 8), (8, 9)]


def test_edges_between_streams_follow_variables_forks_and_joins() -> None:
    between = {(e.before, e.after) for e in forked().edges() if e.between_streams}
    assert between == {(1, 2), (1, 3), (4, 7), (4, 8), (5, 8), (4, 9), (5, 9)}


def test_no_edge_points_backwards() -> None:
    graph = forked()
    place = {node.id: i for i, node in enumerate(graph)}
    assert all(place[edge.before] < place[edge.after] for edge in graph.edges())


def test_a_loop_counts_as_one_node_in_the_edges() -> None:
    assert loop().edges() == (Edge(0, 1, False), Edge(1, 5, False))


def test_a_hint_is_on_no_stream() -> None:
    hint = Prefetch(9, 0, (make.text(10, 0, NAME),))
    graph = Graph("p", (), (make.text(0, 0, NAME), hint, make.text(1, 0, NAME)))
    assert graph.edges() == (Edge(0, 1, False),)
    assert body_of(hint) == hint.body


def test_streams_and_their_nodes_are_in_order() -> None:
    graph = forked()
    assert graph.streams == (0, 1, 2, 3)
    assert [node.id for node in graph.nodes_of(0)] == [0, 1, 8, 9]


def test_ids_are_found_in_bodies_and_new_ones_are_free() -> None:
    graph = loop()
    assert graph.node(3) == make.gen(3, 0, concat("x", LoopIndex(1, 1)))
    assert graph.next_id == 6
    assert Graph("p").next_id == 0
    with pytest.raises(KeyError):
        graph.node(6)


def test_a_graph_is_broken_only_by_a_break_at_its_end() -> None:
    stop = Break(1, 0, "if x:", "branches")
    assert Graph("p", (), (make.text(0, 0, NAME), stop)).broken is stop
    assert forked().broken is None
    assert Graph("p").broken is None


def test_sources_are_those_of_the_body_too() -> None:
    (each,) = [node for node in loop() if isinstance(node, ForEach)]
    assert sources_of(each) == (3,)
    assert sources_of(forked().node(9)) == (4, 5)
    assert list(values_of(make.text(0, 0, NAME))) == []
    assert list(values_of(make.gen(0, 0, Argument("t")))) == [Argument("t")]


def test_two_graphs_with_the_same_nodes_are_equal() -> None:
    assert forked() == forked()
    assert forked().with_nodes(forked().nodes[:-1]) != forked()


# -- unrolling ----------------------------------------------------------------------------------


def test_a_loop_is_written_out_for_each_item() -> None:
    graph = unroll(loop(), {"items": 2})
    texts = [text_of(node) for node in graph if appends(node, ir.Text)]
    first, second = (node.id for node in graph if appends(node, ir.Gen) and node.id)
    assert texts == [
        concat("1. ", Element("items", 0)),
        concat("so ", Variable(first, "{...}"), "!"),
        concat("2. ", Element("items", 1)),
        concat("so ", Variable(second, "{...}"), "!"),
        Variable(0, "x"),
    ]
    assert graph.reads == (0, first, second)
    assert len({node.id for node in graph}) == len(graph)


def test_a_loop_over_nothing_leaves_nothing() -> None:
    graph = unroll(loop(), {"items": 0})
    assert [node.id for node in graph] == [0, 5]
    assert graph.reads == (0,)


def test_a_graph_without_loops_stays_itself() -> None:
    graph = forked()
    assert unroll(graph, {}) is graph


# -- values -------------------------------------------------------------------------------------


def test_concat_flattens_and_merges_neighbours() -> None:
    inner = concat("b", Argument("t"))
    assert concat("a", inner, "", "c", "d") == Concat(
        (Constant("ab"), Argument("t"), Constant("cd"))
    )
    assert concat() == concat("", "") == EMPTY
    assert concat("a") == Constant("a")
    assert concat(Argument("t")) == Argument("t")


def test_walk_gives_a_value_and_its_parts() -> None:
    value = ListOf((Method("strip", Variable(1, "x")), Constant(1)))
    assert list(walk(value)) == [value, value.items[0], Variable(1, "x"), Constant(1)]


def test_only_what_holds_nothing_of_a_run_is_constant() -> None:
    assert is_constant(ListOf((Constant(1), Method("strip", Constant(" a")))))
    assert not is_constant(concat("a", Argument("t")))
