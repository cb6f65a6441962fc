"""The request that a `gen` sends: its constraint, and whether its prompt may heal."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.testing import ScriptedBackend


def asked(body: Any, **sampling: Any) -> list[SamplingParams]:
    """The parameters of every gen of a program."""
    backend = ScriptedBackend(lambda _: "<think>no</think>yes", logprobs={"a": -1})
    sgl.function(body).run(backend=backend, **sampling).sync()
    return [call.params for call in backend.calls if call.params is not None]


def heals(*expressions: Any, **sampling: Any) -> list[bool]:
    def program(s: Any) -> None:
        for expression in expressions:
            s += expression

    return [params.token_healing for params in asked(program, **sampling)]


def test_a_prompt_that_ends_in_the_programs_own_words_heals() -> None:
    assert heals("http:" + sgl.gen()) == [True]
    assert heals("a", sgl.gen(stop="."), "\nb:" + sgl.gen()) == [True, True]
    assert heals(sgl.user("a") + sgl.assistant("I say " + sgl.gen())) == [True]


@pytest.mark.parametrize(
    "before",
    [
        sgl.user("a") + sgl.assistant_begin(),
        sgl.user("a") + sgl.assistant_begin() + "",
        "a" + sgl.select("x", ["a", "b"]),
    ],
)
def test_after_a_role_prefix_or_a_choice_nothing_heals(before: Any) -> None:
    assert heals(before, sgl.gen()) == [False]


def test_after_output_of_the_model_nothing_heals() -> None:
    assert heals("a", sgl.gen(), sgl.gen())[1] is False
    assert heals("a", sgl.separate_reasoning(sgl.gen("x"), "qwen3"), sgl.gen())[1] is False


def test_after_a_join_of_branches_nothing_heals_until_more_text_comes() -> None:
    def program(s: Any) -> None:
        s += "a"
        forks = s.fork(2)
        forks += "b"
        forks.join("concate_and_append")
        s += sgl.gen() + "c" + sgl.gen()

    assert [params.token_healing for params in asked(program)] == [False, True]


def test_a_branch_heals_where_its_parent_would() -> None:
    def program(s: Any) -> None:
        s += "http:"
        s.fork(1)[0].gen("x")

    assert [params.token_healing for params in asked(program)] == [True]


def test_healing_is_switched_off_by_gen_or_by_run() -> None:
    assert heals("a" + sgl.gen(token_healing=False)) == [False]
    assert heals("a" + sgl.gen(), token_healing=False) == [False]
    assert heals("a" + sgl.gen(token_healing=True), token_healing=False) == [True]


CONSTRAINTS: dict[str, Any] = {
    "regex": "a+",
    "json_schema": {"type": "integer"},
    "dtype": int,
    "grammar": "start: /a/",
    "ebnf": 'root ::= "a"',
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constraint_reaches_the_backend_and_leaves_the_prompt_as_it_is(name: str) -> None:
    def program(s: Any) -> None:
        s += "a" + sgl.gen(**{name: CONSTRAINTS[name]})

    (params,) = asked(program)
    assert params.constrained
    assert params.token_healing is False


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constraint_of_gen_replaces_that_of_run(name: str) -> None:
    def program(s: Any) -> None:
        s += "a" + sgl.gen() + sgl.gen(**{name: CONSTRAINTS[name]})

    defaults = {"regex": "b"} if name != "regex" else {"dtype": "str"}
    first, second = asked(program, **defaults)
    assert {k: v for k, v in vars(first).items() if k in CONSTRAINTS and v} == defaults
    assert {k for k, v in vars(second).items() if k in CONSTRAINTS and v} == {name}


class Person:
    """Looks like a pydantic model."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object"}


ADAPTER = pydantic.TypeAdapter(dict[str, Any])


@pytest.mark.parametrize("schema", [{"type": "object"}, '{"type": "object"}', Person, ADAPTER])
def test_a_schema_is_a_dictionary_json_text_or_of_pydantic(schema: Any) -> None:
    def program(s: Any) -> None:
        s += sgl.gen(json_schema=schema)

    (params,) = asked(program)
    assert params.json_schema is not None
    assert json.loads(params.json_schema)["type"] == "object"


@pytest.mark.parametrize("schema", ["{type: object}", {"enum": {1, 2}}, list[int], object()])
def test_a_schema_that_is_no_json_fails_where_it_is_appended(schema: Any) -> None:
    def program(s: Any) -> None:
        s += sgl.gen(json_schema=schema)

    with pytest.raises(
        InvalidParamsError, match=r"json_schema (is no JSON|must be JSON text, .*TypeAdapter)"
    ):
        asked(program)
