from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.compiler.graph.graph import (
    Fork,
    Gen,
    GetForkItem,
    Graph,
    Hoist,
    Node,
    Parameter,
    RoleBegin,
    Text,
    VarScopeBegin,
    VarScopeEnd,
)
from sgl_mlx.compiler.graph.serialise import dumps, loads
from sgl_mlx.compiler.graph.show import written
from sgl_mlx.compiler.graph.validate import check
from sgl_mlx.compiler.graph.values import Argument, Constant, Value, Variable, concat
from sgl_mlx.compiler.passes.hoist import hoist
from sgl_mlx.compiler.passes.opening import MIN_LENGTH
from sgl_mlx.errors import GraphError
from sgl_mlx.testing import ScriptedBackend
from tests.compiler.outcome import outcome
from tests.runtime.conftest import MakeEngine, make_engine, toy_folder

__all__ = ["make_engine", "toy_folder"]

RULES = "Judge the article by one thing alone, in one word, and give no reasons for it. "
assert len(RULES) > MIN_LENGTH
GIVEN = tuple(Parameter(name, "text") for name in ("article", "question", "a", "b"))


def forked(*texts: Value | str, offsets: tuple[int, ...] = ()) -> Graph:
    """A program that forks, and whose branches begin with these texts."""
    size = len(texts)
    nodes: list[Node] = [
        Text(0, 0, Argument("article")),
        Gen(1, 0, Constant("said")),
        Fork(2, 0, offsets or (0,) * size),
    ]
    for i, text in enumerate(texts):
        nodes += [
            GetForkItem(3 + i, 1 + i, 2, i),
            Text(10 + i, 1 + i, Constant(text) if isinstance(text, str) else text),
            Gen(20 + i, 1 + i, Constant("grade")),
        ]
    return Graph("judge", GIVEN, tuple(nodes))


def hoisted(graph: Graph) -> str | None:
    """What the hint writes; roles as their names."""
    hints = [node for node in check(hoist(graph)) if isinstance(node, Hoist)]
    if not hints:
        return None
    assert hoist(graph).nodes.index(hints[0]) + 1 == hoist(graph).nodes.index(graph.node(2))
    return "".join(written(n.text) if isinstance(n, Text) else f"<{n.role}>" for n in hints[0].body)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((RULES + "Style:", RULES + "Facts:"), RULES),
        ((RULES, RULES + "Facts:"), RULES),
        ((RULES + "Same.", RULES + "Same."), RULES + "Same."),
        (("Style: " + RULES, "Facts: " + RULES), None),
        (("Style:", "Style."), None),
        ((RULES,), None),
        ((RULES + "a", RULES + "b", "c"), None),
    ],
)
def test_what_all_branches_begin_with_and_nothing_else_is_hoisted(
    texts: tuple[str, ...], found: str | None
) -> None:
    assert hoisted(forked(*texts)) == found


def test_what_many_branches_share_is_worth_it_though_short() -> None:
    assert hoisted(forked("In one word, A", "In one word, B")) is None
    many = [f"In one word, {letter}" for letter in "ABCDEF"]
    assert hoisted(forked(*many)) == "In one word, "


def test_arguments_are_hoisted_but_not_what_a_model_has_yet_to_say() -> None:
    question = concat(RULES, Argument("question"), "?")
    late = concat(RULES, Variable(1, "said"), "!")
    assert hoisted(forked(concat(question, "A"), concat(question, "B"))) == RULES + "{question}?"
    assert hoisted(forked(late, late)) == RULES
    assert hoisted(forked(concat(Argument("a"), "!"), concat(Argument("b"), "!"))) is None


def test_branches_at_other_positions_share_nothing() -> None:
    assert hoisted(forked(RULES, RULES, offsets=(0, 5))) is None


def test_turns_are_hoisted_and_scopes_are_looked_through() -> None:
    def branch(at: int, role: Any, word: str) -> list[Node]:
        return [
            GetForkItem(10 * at, at, 2, at - 1),
            VarScopeBegin(10 * at + 1, at, Constant("scope")),
            RoleBegin(10 * at + 2, at, role),
            Text(10 * at + 3, at, Constant(RULES + word)),
            VarScopeEnd(10 * at + 4, at, Constant("scope")),
        ]

    def graph(*roles: str) -> Graph:
        nodes = [node for i, role in enumerate(roles) for node in branch(i + 1, role, role)]
        return Graph("turns", nodes=(Text(0, 0, Constant("a")), Fork(2, 0, (0, 0)), *nodes))

    assert hoisted(graph("user", "user")) == f"<user>{RULES}user"
    assert hoisted(graph("user", "assistant")) is None


def test_hoisting_again_changes_nothing() -> None:
    once = hoist(forked(RULES, RULES))
    assert hoist(once) == once


def test_a_graph_with_the_hint_is_saved_and_loaded_unless_it_reads_a_variable() -> None:
    graph = hoist(forked(RULES, RULES))
    assert loads(dumps(graph)) == graph
    said = (Text(90, 0, Variable(1, "said")),)
    changed = (replace(n, body=said) if isinstance(n, Hoist) else n for n in graph)
    with pytest.raises(GraphError, match="no variable"):
        check(graph.with_nodes(changed))


# -- run ------------------------------------------------------------------------------------------


@sgl.function
def judge(s: Any, article: str) -> None:
    s += article
    branches = s.fork(3)
    branches += lambda i: RULES + "ABC"[i] + sgl.gen("grade", max_tokens=2)
    branches.join()


@sgl.function
def chat(s: Any, article: str) -> None:
    s += sgl.user(article)
    branches = s.fork(2)
    branches += sgl.user(RULES) + sgl.assistant(sgl.gen("grade", max_tokens=2))
    branches.join()


def test_the_work_moves_and_the_text_does_not() -> None:
    backend = ScriptedBackend(" good")
    state = judge.compile().run("Seeds. ", backend=backend)
    assert state.text() == "Seeds. "
    assert backend.prefills == ["Seeds. " + RULES, "Seeds. "]
    assert backend.prompts == ["Seeds. " + RULES + letter for letter in "ABC"]


@pytest.mark.parametrize("program", [judge, chat])
def test_the_hint_is_what_every_branch_asks_with(program: sgl.SglFunction) -> None:
    ran, interpreted = (outcome(p, {"article": "x"}) for p in (program.compile(), program))
    assert ran == interpreted
    (hint,) = ran.hints - interpreted.hints
    prompts = [prompt for _, prompt, *_ in ran.requests]
    assert all(prompt.startswith(hint) for prompt in prompts)


def test_a_hint_that_fails_changes_nothing() -> None:
    class Refusing(ScriptedBackend):
        def prefill(self, prompt: Any) -> Any:
            if RULES in str(prompt):
                raise ValueError("too long")
            return super().prefill(prompt)

    state = judge.compile().run("Seeds. ", backend=Refusing(" good"))
    assert state["grade"] == [" good"] * 3


def test_on_an_engine_every_token_is_computed_once(make_engine: MakeEngine) -> None:
    def computed(program: sgl.SglFunction) -> tuple[int, list[str]]:
        engine = make_engine()
        state = program.run("Seeds are lent like books. " * 4, backend=engine, temperature=0)
        stats = engine.get_server_info()["stats"]
        return stats["prompt_tokens"] - stats["cached_tokens"], state["grade"]

    (ours, grades), (theirs, same) = computed(judge.compile()), computed(judge)
    sys.stdout.write(f"\nprompt tokens computed: hoisted {ours}, as given {theirs}\n")
    assert grades == same
    assert ours <= theirs + 2  # the last token of each prompt computed ahead
