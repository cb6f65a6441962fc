from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.compiler.graph.graph import (
    ForEach,
    Fork,
    Gen,
    GetForkItem,
    Graph,
    Join,
    Node,
    RoleBegin,
    RoleEnd,
    Text,
    VarScopeBegin,
    VarScopeEnd,
)
from sgl_mlx.compiler.graph.values import Argument, Constant, Variable, concat
from sgl_mlx.compiler.passes.merge import merge
from sgl_mlx.core import Completion, FinishReason, Prompt
from sgl_mlx.lang.templates.turns import Opening, Roles
from sgl_mlx.lang.transcript import Transcript


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
        if isinstance(node, RoleBegin):
            transcript.begin(node.role)
        elif isinstance(node, RoleEnd):
            transcript.end()
        elif isinstance(node, Text):
            transcript.append(_spelt(node))
        elif isinstance(node, Gen):
            asked.append((transcript.prompt(), transcript.healable))
            done = Completion("model", (1,), FinishReason("stop"), 0, 0)
            transcript.append_generated(done)
        else:
            asked.append((transcript.prompt(), len(transcript.text) > 0))
    return [*asked, (transcript.prompt(), transcript.healable)]


def _spelt(node: Text) -> str:
    value = node.text
    parts = value.parts if hasattr(value, "parts") else (value,)
    return "".join(str(getattr(part, "value", "")) for part in parts)


TURN = st.lists(
    st.sampled_from(["", "", "a", "b ", "argument", "gen", "scope"]), min_size=0, max_size=6
)


def _graph(turns: list[list[str]]) -> Graph:
    nodes: list[Node] = []
    for turn in turns:
        nodes.append(RoleBegin(len(nodes), 0, "user"))
        for word in turn:
            id = len(nodes)
            if word == "gen":
                nodes.append(Gen(id, 0, Constant("x")))
            elif word == "scope":
                nodes.append(VarScopeBegin(id, 0, Constant("v")))
            elif word == "argument":
                nodes.append(Text(id, 0, Argument("empty")))
            else:
                nodes.append(Text(id, 0, Constant(word)))
        nodes.append(RoleEnd(len(nodes), 0, "user"))
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
    assert not any(isinstance(a, Text) and isinstance(b, Text) for a, b in pairs)
    assert merge(merged) == merged


def test_texts_of_two_streams_stay_apart_and_wait_for_what_they_read() -> None:
    nodes = (
        Text(0, 0, Constant("a")),
        Gen(1, 1, Constant("x")),
        Text(2, 1, Constant("b")),
        Text(3, 0, Variable(1, "x")),
    )
    merged = merge(Graph("two", nodes=nodes))
    text = Text(3, 0, concat("a", Variable(1, "x")))
    assert merged.nodes == (nodes[1], nodes[2], text)


def test_texts_around_a_loop_are_not_joined_through_it() -> None:
    inside = (Text(2, 0, Constant("i")), Text(3, 0, Constant("j")))
    nodes = (Text(0, 0, Constant("a")), ForEach(1, 0, "list", inside), Text(4, 0, Constant("b")))
    merged = merge(Graph("loop", nodes=nodes))
    assert merged.nodes == (
        nodes[0],
        ForEach(1, 0, "list", (Text(3, 0, Constant("ij")),)),
        nodes[2],
    )


def test_a_scope_keeps_its_bounds() -> None:
    nodes = (
        Text(0, 0, Constant("a")),
        VarScopeBegin(1, 0, Constant("v")),
        Text(2, 0, Constant("b")),
        VarScopeEnd(3, 0, Constant("v")),
        Text(4, 0, Constant("c")),
    )
    assert merge(Graph("scope", nodes=nodes)).nodes == nodes


def test_what_a_branch_wrote_before_its_join_stays_before_it() -> None:
    nodes = (
        Fork(0, 0, (0,)),
        GetForkItem(1, 1, 0, 0),
        Text(2, 1, Constant("a")),
        Join(3, 0, 0, "concate_and_append"),
        Text(4, 1, Constant("b")),
    )
    assert merge(Graph("join", nodes=nodes)).nodes == nodes
