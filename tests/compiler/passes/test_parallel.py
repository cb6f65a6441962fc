from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Break,
    Call,
    Fork,
    GetForkItem,
    Join,
    Node,
    Sync,
    appends,
)
from sgl_mlx.compiler.graph.values import Constant, Variable
from sgl_mlx.compiler.passes.parallel import WAITING, parallel
from sgl_mlx.lang import ir
from sgl_mlx.testing import ScriptedBackend
from tests.compiler import nodes as make


def _asked_at_once(graph: Graph) -> list[int]:
    """The questions that are under way before the graph waits for an answer.

    A model of execution: nodes in order; a question whose prompt needs an answer is only queued,
    a waiting node whose stream needs one stops everything behind it.
    """
    open_ids: set[int] = set()
    asked = []
    for node in graph:
        needs = any(edge.after == node.id and edge.before in open_ids for edge in graph.edges())
        if isinstance(node, WAITING) and needs:
            break
        if appends(node, ir.Gen) and not needs:
            asked.append(node.id)
        if needs or appends(node, ir.Gen):
            open_ids.add(node.id)
    return asked


def _independent(graph: Graph) -> list[int]:
    """The questions that need no answer, nor a join of branches that do."""
    tainted: set[int] = set()
    joined: dict[int, int] = {}
    free = []
    for node in graph:
        needs = any(e.after == node.id and e.before in tainted for e in graph.edges())
        needs = needs or joined.get(node.stream) in tainted
        if isinstance(node, Join):
            branches = (
                n.stream for n in graph if isinstance(n, GetForkItem) and n.fork == node.fork
            )
            joined.update(dict.fromkeys(branches, node.id))
        if appends(node, ir.Gen) and not needs:
            free.append(node.id)
        if needs or appends(node, ir.Gen):
            tainted.add(node.id)
    return free


STEPS = st.lists(
    st.tuples(st.sampled_from(["gen", "sync", "fork", "call", "read", "join"]), st.integers(0, 9)),
    max_size=14,
)


def _graph(steps: list[tuple[str, int]]) -> Graph:
    """A program that takes these steps, each on one of the streams there are by then."""
    nodes: list[Node] = []
    streams, gens, forks = [0], list[int](), list[Fork]()
    for word, number in steps:
        stream, id = streams[number % len(streams)], len(nodes)
        if word == "gen":
            nodes.append(make.gen(id, stream, Constant(f"x{id}")))
            gens.append(id)
        elif word == "sync":
            nodes.append(Sync(id, stream))
        elif word == "call":
            streams.append(len(streams))
            nodes.append(Call(id, streams[-1], "nested"))
        elif word == "fork":
            streams.append(len(streams))
            forks.append(Fork(id, stream, (0,)))
            nodes += forks[-1], GetForkItem(id + 1, streams[-1], id, 0)
        elif word == "read" and gens:
            source = gens[number % len(gens)]
            nodes.append(make.text(id, stream, Variable(source, f"x{source}")))
        elif word == "join" and forks:
            fork = forks.pop(number % len(forks))
            nodes.append(Join(id, fork.stream, fork.id))
    return Graph("random", nodes=tuple(nodes))


@given(STEPS)
def test_all_that_needs_no_answer_is_asked_before_one_is_waited_for(
    steps: list[tuple[str, int]],
) -> None:
    graph = _graph(steps)
    assert sorted(_asked_at_once(parallel(graph))) == sorted(_independent(graph))


@given(STEPS)
def test_edges_and_the_order_of_every_stream_are_kept(steps: list[tuple[str, int]]) -> None:
    graph = _graph(steps)
    after = parallel(graph)
    place = {node.id: at for at, node in enumerate(after)}
    assert sorted(place) == sorted(node.id for node in graph)
    assert all(place[edge.before] < place[edge.after] for edge in graph.edges())
    assert all(after.nodes_of(stream) == graph.nodes_of(stream) for stream in graph.streams)


def test_what_a_branch_writes_after_its_join_is_not_brought_back() -> None:
    nodes: tuple[Node, ...] = (
        Fork(0, 0, (0,)),
        GetForkItem(1, 1, 0, 0),
        Join(2, 0, 0),
        make.gen(3, 1, Constant("late")),
    )
    assert parallel(Graph("late", nodes=nodes)).nodes == nodes


def test_of_two_waits_the_one_that_is_sooner_over_comes_first() -> None:
    nodes: list[Node] = [
        make.gen(0, 0, Constant("a")),
        make.gen(1, 0, Constant("b")),
        Call(2, 1, "other"),
        make.gen(3, 1, Constant("c")),
        Sync(4, 0),
        Sync(5, 1),
    ]
    order = [node.id for node in parallel(Graph("waits", nodes=tuple(nodes)))]
    assert order == [0, 1, 2, 3, 5, 4]


def test_a_break_stays_last() -> None:
    nodes = (Fork(0, 0, (0,)), Break(1, 0, "if x:", "x"))
    graph = Graph("broken", nodes=nodes)
    assert parallel(graph).broken == nodes[1]


# -- what the pass is for -------------------------------------------------------------------------


@sgl.function
def expand(s, tip):  # type: ignore[no-untyped-def]
    s += f"Expand: {tip}\n" + sgl.gen("paragraph")


@sgl.function
def slogan(s, topic):  # type: ignore[no-untyped-def]
    s += f"A slogan for {topic}: " + sgl.gen("slogan")


@sgl.function
def campaign(s, topic):  # type: ignore[no-untyped-def]
    s += f"A tip for {topic}: " + sgl.gen("tip")
    first = expand.run(s["tip"], backend=s.stream_executor.backend)
    second = slogan.run(topic, backend=s.stream_executor.backend)
    s += first["paragraph"] + second["slogan"]


def test_a_body_that_reads_a_variable_asks_nothing_else_meanwhile() -> None:
    """The interpreter's order: the slogan is asked for only after the tip was answered."""
    backend = ScriptedBackend({"Expand": "p", "slogan": "q", "tip": "t"})
    campaign.run("tea", backend=backend).sync()
    assert [prompt.split()[0] for prompt in backend.prompts] == ["A", "Expand:", "A"]
    assert "Expand: t" in backend.prompts[1]


def test_in_a_graph_the_same_questions_start_together() -> None:
    nodes = (
        make.gen(0, 0, Constant("tip")),
        Call(1, 1, "expand"),
        make.text(2, 1, Variable(0, "tip")),
        make.gen(3, 1, Constant("paragraph")),
        Sync(4, 1),
        Call(5, 2, "slogan"),
        make.gen(6, 2, Constant("slogan")),
    )
    graph = Graph("campaign", nodes=nodes)
    assert _asked_at_once(graph) == [0]
    assert _asked_at_once(parallel(graph)) == [0, 6]
