"""Grammars that explode: each is cut off, and no other request waits for it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.constraints import ebnf
from sgl_mlx.runtime.constraints.deep_stack import on_deep_stack
from sgl_mlx.runtime.constraints.schema import prepare_schema
from sgl_mlx.runtime.engine import Engine
from tests.runtime.conftest import write_toy
from tests.runtime.constraints.adversarial_grammars import ADVERSARIAL
from tests.runtime.constraints.constrained_fixtures import compiler, needs_model
from tests.runtime.faults import unharmed
from tests.runtime.footprint import assert_no_growth

GREEDY = {"temperature": 0, "max_new_tokens": 8}
WAIT = 120
TOKENS = 12


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_toy(tmp_path_factory.mktemp("grammars"))
    with Engine(str(folder), max_total_tokens=4000) as engine:
        yield engine


@needs_model
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_an_adversarial_grammar_is_refused_or_gives_tokens(name: str) -> None:
    kind, grammar = ADVERSARIAL[name]
    message, found = "", None
    try:
        params = SamplingParams.of({kind: grammar}).validate(Limits())
        found = compiler().constraint(params)
    except InvalidParamsError as error:
        message = str(error)
    if found is None:
        assert 0 < len(message) < 1500
        return
    for _ in range(TOKENS):
        mask = int.from_bytes(found.allowed(), "little")
        if found.error is not None or found.complete:
            break
        assert mask
        found.accept((mask & -mask).bit_length() - 1)
        found.forced()


def test_requests_go_on_while_grammars_are_compiled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = engine._model.grammars
    known = {**GREEDY, "regex": "(ab|cd)+"}
    long = "a b " * 100
    alone = [engine.generate(p, GREEDY)["output_ids"] for p in ("a", long)]
    constrained = engine.generate("a", known)["output_ids"]
    go, compile = threading.Event(), grammars._compile

    def blocked(kind: str, text: str) -> Any:
        assert go.wait(WAIT)
        return compile(kind, text)

    monkeypatch.setattr(grammars, "_compile", blocked)
    params = [SamplingParams.of({**GREEDY, "regex": f"x{{{i}}}"}) for i in range(1, 9)]
    waiting = [engine.submit((Text("a"),), p) for p in params]
    try:
        assert [engine.generate(p, GREEDY)["output_ids"] for p in ("a", long)] == alone
        assert engine.generate("a", known)["output_ids"] == constrained
        assert not any(future.done() for future in waiting)
    finally:
        go.set()
    assert [future.result(WAIT)[0].text for future in waiting] == ["x" * i for i in range(1, 9)]


def test_of_equal_grammars_one_is_compiled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, count = engine._model.grammars, itertools.count()
    compile = grammars._compile

    def counted(kind: str, text: str) -> Any:
        next(count)
        return compile(kind, text)

    monkeypatch.setattr(grammars, "_compile", counted)
    params = SamplingParams.of({**GREEDY, "regex": "once|twice"})
    futures = [engine.submit((Text("a"),), params) for _ in range(8)]
    assert len({future.result(WAIT)[0].text for future in futures}) == 1
    assert next(count) == 1


def test_a_grammar_that_fails_is_tried_anew(engine: Engine) -> None:
    for _ in range(2):
        with pytest.raises(InvalidParamsError, match="nothing can match it"):
            engine.generate("a", json_schema=False)


@pytest.mark.parametrize("name", ["too many references", "too many levels", "too many rules"])
def test_memory_comes_back_that_a_refused_grammar_had_taken(engine: Engine, name: str) -> None:
    kind, grammar = ADVERSARIAL[name]
    right = engine.generate("a", GREEDY)["output_ids"]

    def assert_right(engine: Engine) -> None:
        assert engine.generate("a", GREEDY)["output_ids"] == right

    def fault() -> None:
        with pytest.raises(InvalidParamsError):
            engine.generate("a", {**GREEDY, kind: grammar})

    with unharmed(engine, assert_right):
        assert_no_growth(fault)


names = st.sampled_from("abcdefgh")


@given(st.dictionaries(names, st.lists(names, max_size=3), min_size=1))
def test_recursive_rules_are_those_that_reach_themselves(calls: dict[str, list[str]]) -> None:
    bodies = {name: [("name", called) for called in found] for name, found in calls.items()}

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        waiting = [*calls.get(name, [])]
        while waiting:
            inner = waiting.pop()
            if inner not in found:
                found.add(inner)
                waiting += calls.get(inner, [])
        return found

    assert ebnf._recursive(bodies) == {name for name in calls if name in reached(name)}


def test_a_deep_stack_returns_results_and_errors() -> None:
    before = threading.stack_size()
    assert on_deep_stack(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        on_deep_stack(lambda: 1 // 0)
    assert threading.stack_size() == before


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        ('{"items": {"items": {"enum": ["{[{["]}}}', "max_schema_depth"),
        ('{"anyOf": [{"$ref": "#/a"}, {"$ref": "#/b"}, {"$ref": "#/b"}]}', "max_grammar_rules"),
    ],
)
def test_a_schemas_levels_and_references_are_counted(schema: str, limit: str) -> None:
    most = 4 if limit == "max_schema_depth" else 2
    prepare_schema(schema, Limits(**{limit: most}))
    with pytest.raises(LimitError, match=limit):
        prepare_schema(schema, Limits(**{limit: most - 1}))
