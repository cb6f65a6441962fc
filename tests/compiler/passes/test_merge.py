from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Append,
    ForEach,
    Fork,
    GetForkItem,
    Join,
    Node,
    appends,
    text_of,
)
from sgl_mlx.compiler.graph.values import Argument, Constant, Variable, concat
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.core import Completion, FinishReason, Prompt
from sgl_mlx.lang import ir
from sgl_mlx.lang.templates.turns import Opening, Roles
from sgl_mlx.lang.transcript import Transcript
from tests.compiler import nodes as make


class OwingTemplate:
    """A template whose turns owe a blank to text, but not to the model."""

    stop = ()
    default_system_prompt = None

    def begin(self, closed: Roles, role: str) -> Opening:
        return Opening(f"<{role}>", " ")

    def end(self, closed: Roles, role: str) -> str:
        return "</>"


def _asked(graph: Graph) -> list[tuple[Prompt, bool]]:
    """The prompt of every question, and whether its last token may heal."""
    transcript = Transcript(OwingTemplate)
    asked = []
    for node in graph:
        expr = node.expr if isinstance(node, Append) else None
        if isinstance(expr, ir.RoleBegin):
            transcript.begin(expr.role)
        elif isinstance(expr, ir.RoleEnd):
            transcript.end()
        elif isinstance(expr, ir.Text):
            transcript.append(_spelt(node))
        elif isinstance(expr, ir.Gen):
            asked.append((transcript.prompt(), transcript.healable))
            done = Completion("model", (1,), FinishReason("stop"), 0, 0)
            transcript.append_generated(done)
        else:
            asked.append((transcript.prompt(), len(transcript.text) > 0))
    return [*asked, (transcript.prompt(), transcript.healable)]


def _spelt(node: Node) -> str:
    value = text_of(node)
    parts = value.parts if hasattr(value, "parts") else (value,)
    return "".join(str(getattr(part, "value", "")) for part in parts)


TURN = st.lists(
    st.sampled_from(["", "", "a", "b ", "argument", "gen", "scope"]), min_size=0, max_size=6
)


def _graph(turns: list[list[str]]) -> Graph:
    nodes: list[Node] = []
    for turn in turns:
        nodes.append(make.role_begin(len(nodes), 0, "user"))
        for word in turn:
            id = len(nodes)
            if word == "gen":
                nodes.append(make.gen(id, 0, Constant("x")))
            elif word == "scope":
                nodes.append(make.scope_begin(id, 0, Constant("v")))
            elif word == "argument":
                nodes.append(make.text(id, 0, Argument("empty")))
            else:
                nodes.append(make.text(id, 0, Constant(word)))
        nodes.append(make.role_end(len(nodes), 0, "user"))
    return Graph("turns", nodes=tuple(nodes))


@given(st.lists(TURN, max_size=3))
def test_every_question_sees_the_same_prompt(turns: list[list[str]]) -> None:
    graph = _graph(turns)
    assert _asked(merge(graph)) == _asked(graph)


@given(st.lists(TURN, max_size=3))
def test_no_two_texts_are_neighbours_and_merging_again_changes_nothing(
    turns: list[list[str]],
) -> None:
    merged = merge(_graph(turns))
    pairs = zip(merged.nodes, merged.nodes[1:], strict=False)
    assert not any(appends(a, ir.Text) and appends(b, ir.Text) for a, b in pairs)
    assert merge(merged) == merged


def test_texts_of_two_streams_stay_apart_and_wait_for_what_they_read() -> None:
    nodes = (
        make.text(0, 0, Constant("a")),
        make.gen(1, 1, Constant("x")),
        make.text(2, 1, Constant("b")),
        make.text(3, 0, Variable(1, "x")),
    )
    merged = merge(Graph("two", nodes=nodes))
    text = make.text(3, 0, concat("a", Variable(1, "x")))
    assert merged.nodes == (nodes[1], nodes[2], text)


def test_texts_around_a_loop_are_not_joined_through_it() -> None:
    inside = (make.text(2, 0, Constant("i")), make.text(3, 0, Constant("j")))
    nodes = (
        make.text(0, 0, Constant("a")),
        ForEach(1, 0, "list", inside),
        make.text(4, 0, Constant("b")),
    )
    merged = merge(Graph("loop", nodes=nodes))
    assert merged.nodes == (
        nodes[0],
        ForEach(1, 0, "list", (make.text(3, 0, Constant("ij")),)),
        nodes[2],
    )


def test_a_scope_keeps_its_bounds() -> None:
    nodes = (
        make.text(0, 0, Constant("a")),
        make.scope_begin(1, 0, Constant("v")),
        make.text(2, 0, Constant("b")),
        make.scope_end(3, 0, Constant("v")),
        make.text(4, 0, Constant("c")),
    )
    assert merge(Graph("scope", nodes=nodes)).nodes == nodes


def test_what_a_branch_wrote_before_its_join_stays_before_it() -> None:
    nodes = (
        Fork(0, 0, (0,)),
        GetForkItem(1, 1, 0, 0),
        make.text(2, 1, Constant("a")),
        Join(3, 0, 0, "concate_and_append"),
        make.text(4, 1, Constant("b")),
    )
    assert merge(Graph("join", nodes=nodes)).nodes == nodes
