"""The nodes that the words of the language make of their arguments, and their refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sgl_mlx.errors import InvalidParamsError, ProgramError, RegexError
from sgl_mlx.lang import words
from sgl_mlx.lang.ir import Gen, Select


def test_gen_keeps_only_what_was_given() -> None:
    node = words.gen("x", 16, stop="\n", temperature=0)
    assert node == Gen("x", {"max_new_tokens": 16, "stop": "\n", "temperature": 0})


def test_min_tokens_is_min_new_tokens() -> None:
    assert words.gen("x", 16, 4) == Gen("x", {"max_new_tokens": 16, "min_new_tokens": 4})


def test_gen_with_choices_is_select() -> None:
    assert words.gen("x", choices=["a", "b"]) == words.select("x", ["a", "b"])


@pytest.mark.parametrize("given", [int, "int"])
def test_dtype_is_passed_by_name(given: Any) -> None:
    assert words.gen("x", dtype=given) == Gen("x", {"dtype": "int"})


def test_typed_gens_are_gens_of_a_dtype() -> None:
    assert words.gen_int("n", 4) == Gen("n", {"max_new_tokens": 4, "dtype": "int"})
    assert words.gen_string("t", stop="\n") == Gen("t", {"stop": "\n", "dtype": "str"})


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(InvalidParamsError, match="int, float, str or bool"):
        words.gen("x", dtype=list)


@pytest.mark.parametrize("caught", [RegexError, InvalidParamsError, re.error])
def test_a_broken_regex_is_refused_with_its_position(caught: type[Exception]) -> None:
    with pytest.raises(caught, match=r"regex 'ab\[c': unterminated .* at position 2") as broken:
        words.gen("x", regex="ab[c")
    assert broken.value.pos == 2  # type: ignore[attr-defined]


def test_dtype_wins_over_regex_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="dtype is used"):
        node = words.gen("x", dtype=int, regex="a")
    assert node == Gen("x", {"dtype": "int"})


def test_constraints_and_healing_are_passed_as_given() -> None:
    schema = {"type": "object"}
    assert words.gen(json_schema=schema).sampling == {"json_schema": schema}
    assert words.gen(grammar="start: /a/", token_healing=False).sampling == {
        "grammar": "start: /a/",
        "token_healing": False,
    }


@pytest.mark.parametrize("choices", [None, [], "abc"])
def test_select_needs_choices(choices: Any) -> None:
    with pytest.raises(ProgramError, match="needs a list of choices"):
        words.select("x", choices)


def test_gen_with_no_choices_is_refused() -> None:
    with pytest.raises(ProgramError, match="needs a list of choices"):
        words.gen("x", choices=[])


@pytest.mark.parametrize("choice", ["", 3])
def test_choices_must_be_texts(choice: Any) -> None:
    with pytest.raises(ProgramError, match="non-empty texts"):
        words.select("x", ["a", choice])


def test_select_refuses_a_temperature() -> None:
    with pytest.raises(ProgramError, match=r"temperature must be 0, got 0\.7"):
        words.select("x", ["a"], temperature=0.7)


def test_select_refuses_an_unknown_method_and_names_the_known() -> None:
    with pytest.raises(ProgramError, match=r"unknown choices_method 'best'.*greedy_token"):
        words.select("x", ["a"], choices_method="best")  # type: ignore[arg-type]


def test_a_role_without_an_expression_is_an_empty_turn() -> None:
    assert repr(words.system()) == "ExprList([RoleBegin(system), RoleEnd(system)])"


def test_begin_and_end_words_enclose_a_turn() -> None:
    for role in ("system", "user", "assistant"):
        begin = getattr(words, f"{role}_begin")()
        end = getattr(words, f"{role}_end")()
        assert begin + "x" + end == getattr(words, role)("x")


def test_selects_of_the_same_choices_are_equal() -> None:
    assert isinstance(words.select("x", ["a"]), Select)
    assert words.select("x", ["a"]) == words.select("x", ("a",))
