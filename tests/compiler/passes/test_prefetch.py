from __future__ import annotations

from dataclasses import replace

from sgl_mlx.compiler.graph.graph import Graph, Parameter
from sgl_mlx.compiler.graph.nodes import Call, Node, Prefetch, kind_of
from sgl_mlx.compiler.graph.nodes import (
    sources_of as variables_read,
)
from sgl_mlx.compiler.graph.serialise import dumps, loads
from sgl_mlx.compiler.graph.values import Argument, Constant, Variable, concat
from sgl_mlx.compiler.passes.opening import MIN_LENGTH
from sgl_mlx.compiler.passes.prefetch import prefetch
from tests.compiler import nodes as make

LONG = "You turn short tips into detailed paragraphs. " * 4


def _nested(stream: int, begin: int, text: str = LONG, source: int = 0) -> tuple[Node, ...]:
    return (
        Call(begin, stream, "expand"),
        make.role_begin(begin + 1, stream, "user"),
        make.text(begin + 2, stream, concat(text, Variable(source, "tip"))),
        make.role_end(begin + 3, stream, "user"),
        make.gen(begin + 4, stream, Constant("paragraph")),
    )


MAIN = (make.text(90, 0, Argument("topic")), make.gen(0, 0, Constant("tip")))


def _hints(graph: Graph) -> list[Prefetch]:
    return [node for node in prefetch(graph) if isinstance(node, Prefetch)]


def test_a_hint_stands_right_behind_the_question_that_is_waited_for() -> None:
    graph = Graph("tips", nodes=(*MAIN, make.gen(1, 0, Constant("other")), *_nested(1, 10)))
    after = prefetch(graph)
    assert isinstance(after.nodes[2], Prefetch)
    assert after.with_nodes(node for node in after if not isinstance(node, Prefetch)) == graph


def test_a_hint_is_the_beginning_up_to_the_variable_and_reads_none() -> None:
    (hint,) = _hints(Graph("tips", nodes=(*MAIN, *_nested(1, 10))))
    assert [replace(node, id=0) for node in hint.body] == [
        make.role_begin(0, 0, "user"),
        make.text(0, 0, Constant(LONG)),
    ]
    assert variables_read(hint) == ()


def test_a_graph_with_hints_is_saved_and_loaded() -> None:
    """A hint stands before the stream begins that it is for, and must not claim to be in it."""
    topic = Parameter("topic", "text")
    graph = prefetch(Graph("tips", (topic,), (*MAIN, *_nested(1, 10))))
    assert loads(dumps(graph)) == graph


def test_ids_of_hints_and_their_bodies_are_new() -> None:
    graph = prefetch(Graph("tips", nodes=(*MAIN, *_nested(1, 10), *_nested(2, 20, LONG[::-1]))))
    ids = [node.id for node in graph.all_nodes()]
    assert len(ids) == len(set(ids))
    assert len([node for node in graph if isinstance(node, Prefetch)]) == 2


def test_programs_that_begin_alike_share_a_hint() -> None:
    graph = Graph("tips", nodes=(*MAIN, *_nested(1, 10), *_nested(2, 20)))
    assert len(_hints(graph)) == 1


def test_of_several_questions_the_earliest_one_is_overlapped() -> None:
    """The second answer needs the first, so both run before the nested program can."""
    second = make.gen(1, 0, Constant("tip"))
    after = prefetch(Graph("tips", nodes=(*MAIN, second, *_nested(1, 10, source=1))))
    assert [kind_of(node) for node in after][:4] == ["Text", "Gen", "Prefetch", "Gen"]


def test_a_program_that_waits_for_nothing_needs_no_hint() -> None:
    nodes = (
        *MAIN,
        Call(10, 1, "free"),
        make.text(11, 1, Constant(LONG)),
        make.gen(12, 1, Constant("x")),
    )
    assert _hints(Graph("free", nodes=nodes)) == []


def test_a_short_beginning_needs_no_hint_unless_an_argument_may_make_it_long() -> None:
    short = _nested(1, 10, "x" * (MIN_LENGTH - 1))
    assert _hints(Graph("short", nodes=(*MAIN, *short))) == []
    text = make.text(12, 1, concat(Argument("document"), Variable(0, "tip")))
    opened = tuple(text if node.id == 12 else node for node in short)
    assert len(_hints(Graph("long", nodes=(*MAIN, *opened)))) == 1


def test_prefetching_twice_hints_once() -> None:
    graph = prefetch(Graph("tips", nodes=(*MAIN, *_nested(1, 10))))
    assert prefetch(graph) == graph
