"""Graphs made by hand, run: what is submitted when, what waits, hints."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.compiler.graph.graph import Graph, Parameter
from sgl_mlx.compiler.graph.nodes import (
    Append,
    Break,
    Call,
    Fork,
    GetForkItem,
    Join,
    Prefetch,
)
from sgl_mlx.compiler.graph.values import NONE, Argument, Constant, LoopItem, Variable, concat
from sgl_mlx.compiler.program import CompiledProgram
from sgl_mlx.compiler.running.steps import Hint, Submission, plan_of, speculative
from sgl_mlx.core import Image as CoreImage
from sgl_mlx.core import Part
from sgl_mlx.errors import GraphError
from sgl_mlx.lang import ir
from sgl_mlx.testing import ScriptedBackend
from tests.compiler import nodes as make
from tests.patience import PATIENCE

TOPIC = (Parameter("topic", "text"),)


@pytest.fixture(autouse=True)
def _no_default_backend() -> Iterator[None]:
    sgl.set_default_backend(None)
    yield
    sgl.set_default_backend(None)


def text(id: int, value: Any, stream: int = 0) -> Append:
    return make.text(id, stream, Constant(value) if isinstance(value, str) else value)


def run(graph: Graph, backend: ScriptedBackend, **arguments: Any) -> sgl.ProgramState:
    return CompiledProgram.from_graph(graph).run(backend=backend, **arguments)


def test_text_and_roles_between_gens_are_one_step() -> None:
    nodes = (
        make.role_begin(0, 0, "user"),
        text(1, "a"),
        text(2, Argument("topic")),
        make.role_end(3, 0, "user"),
        make.gen(4, 0, NONE),
        text(5, "b"),
        text(6, "c"),
        text(7, Variable(4, None)),
    )
    (submission,) = plan_of(Graph("p", TOPIC, nodes)).steps
    assert isinstance(submission, Submission)
    begin, gen, constant, late = submission.parts
    known = {concat("a", Argument("topic")): "at"}
    assert begin.make(known.get) == ir.ExprList(
        (ir.RoleBegin("user"), ir.Text("at"), ir.RoleEnd("user"))
    )
    assert isinstance(gen.ready, ir.Gen)
    assert constant.ready == ir.Text("bc")
    assert late.sources == (Variable(4, None),)


def test_text_that_is_the_same_in_every_run_is_made_once() -> None:
    nodes = (make.role_begin(0, 0, "user"), text(1, "a"), text(2, "b"), make.role_end(3, 0, "user"))
    (submission,) = plan_of(Graph("p", (), nodes)).steps
    assert isinstance(submission, Submission)
    (part,) = submission.parts
    assert part.ready == ir.ExprList((ir.RoleBegin("user"), ir.Text("ab"), ir.RoleEnd("user")))


def test_a_stream_waits_for_the_text_of_another_without_holding_up_the_run() -> None:
    nodes = (
        Call(0, 1, "other"),
        make.gen(1, 1, Constant("x")),
        text(2, "got "),
        text(3, concat("<", Variable(1, "x"), ">")),
        make.gen(4, 0, Constant("y")),
    )
    called = ScriptedBackend(" inner", manual=True)
    own = ScriptedBackend(" own", manual=True)
    sgl.set_default_backend(called)
    # Reading keeps the called program alive until it has answered, as the body would.
    states: list[sgl.ProgramState] = []
    graph = Graph("p", (), nodes, reads=(1,))
    thread = threading.Thread(target=lambda: states.append(run(graph, own)))
    thread.start()
    while not called.calls:
        thread.join(0.001)
    assert (called.prompts, own.prompts) == ([""], [])
    called.run_all()
    thread.join(PATIENCE)
    own.run_all()
    assert states[0].text() == "got < inner> own"


def test_what_the_graph_reads_is_waited_for() -> None:
    graph = Graph("p", (), (text(0, "a"), make.gen(1, 0, Constant("x"))), reads=(1,))
    with pytest.raises(ValueError, match="boom"):
        run(graph, ScriptedBackend([ValueError("boom")]))


def test_the_result_is_put_together_of_what_the_run_knows() -> None:
    graph = Graph(
        "p", TOPIC, (make.gen(0, 0, Constant("x")),), result=concat(Argument("topic"), "!")
    )
    assert run(graph, ScriptedBackend("a"), topic="t").ret_value == "t!"


def test_a_hint_is_computed_ahead_on_the_default_backend_and_leaves_no_text() -> None:
    body = (make.role_begin(1, 0, "system"), text(2, "Long."), make.role_end(3, 0, "system"))
    nodes = (text(4, "a"), Prefetch(0, 0, body), text(5, "b"))
    default = ScriptedBackend()
    sgl.set_default_backend(default)
    graph = Graph("p", (), nodes)
    assert [type(step) for step in plan_of(graph).steps] == [Submission, Hint, Submission]
    assert run(graph, ScriptedBackend()).text() == "ab"
    assert default.prefetches == ["SYSTEM:Long.\n"]


def test_a_hint_that_fails_changes_nothing() -> None:
    nodes = (Prefetch(0, 0, (text(1, "Long."),)), text(2, "a"))
    assert run(Graph("p", (), nodes), ScriptedBackend()).text() == "a"
    stopped = ScriptedBackend()
    stopped.shutdown()
    sgl.set_default_backend(stopped)
    assert run(Graph("p", (), nodes), ScriptedBackend()).text() == "a"


def test_an_image_is_what_it_is_in_the_language() -> None:
    graph = Graph("p", (), (make.image(0, 0, Constant("cat.png")),))

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.image("cat.png")

    def parts(of: sgl.SglFunction) -> tuple[Part, ...]:
        return of.run(backend=ScriptedBackend()).stream_executor.transcript.prompt()

    assert parts(CompiledProgram.from_graph(graph)) == parts(program) == (CoreImage("cat.png"),)


def test_a_value_outside_its_loop_is_an_error() -> None:
    graph = Graph("p", (), (text(0, LoopItem(7)),))
    with pytest.raises(GraphError, match="outside the loop"):
        run(graph, ScriptedBackend())


# -- what runs ahead of a break -----------------------------------------------------------------


def test_ahead_of_a_break_runs_all_but_called_programs_and_what_needs_them() -> None:
    stop = Break(20, 0, "code", "reason")
    nodes = (
        text(0, "a"),
        Call(1, 1, "other"),
        make.gen(2, 1, Constant("x")),
        Fork(3, 0, (0, 0)),
        GetForkItem(4, 2, 3, 0),
        GetForkItem(5, 3, 3, 1),
        text(6, Variable(2, "x"), stream=2),
        make.gen(7, 2, Constant("y")),
        make.gen(8, 3, Constant("y")),
        Join(9, 0, 3),
        make.select(10, 0, Constant("z"), (Constant("p"),)),
        stop,
    )
    assert [node.id for node in speculative(Graph("p", (), nodes))] == [0, 3, 4, 5, 8]
    rest = tuple(node for node in nodes if node.id not in (1, 2, 6))
    assert [n.id for n in speculative(Graph("p", (), rest))] == [0, 3, 4, 5, 7, 8, 9, 10]
