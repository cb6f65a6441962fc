"""Bounds on requests: each has a name, a default, an option, and an error that names them."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import InvalidParamsError, LimitError
from sgl_mlx.limits import UNLIMITED, Limits

NAMES = [field.name for field in fields(Limits)]
COUNTS = [field.name for field in fields(Limits) if field.type == "int"]


@given(st.sampled_from(COUNTS), st.integers(1, 10**12), st.integers(-2, 2))
def test_a_limit_refuses_exactly_what_is_over_it(name: str, most: int, more: int) -> None:
    limits = Limits(**{name: most})
    if more <= 0:
        limits.check(name, most + more, "it has many")
        return
    with pytest.raises(LimitError) as caught:
        limits.check(name, most + more, "it has many")
    assert caught.value.limit == name
    assert str(caught.value).startswith(f"it has many: the limit {name} is {most:,}; ")
    assert f"--limit {name}=N" in str(caught.value)


def test_limits_come_as_a_dictionary_of_names() -> None:
    assert Limits.of({"max_n": 5}) == Limits(max_n=5)
    assert Limits.of(None) == Limits.of({}) == Limits.of(Limits()) == Limits()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [0, -1, "5", math.nan, True, [1]])
def test_a_wrong_limit_is_refused_by_its_name(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidParamsError, match=name):
        Limits.of({name: wrong})


def test_an_unknown_limit_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidParamsError, match=r"max_stopz.*max_stops"):
        Limits.of({"max_stopz": 5})


@given(st.sampled_from(NAMES), st.integers(0, 10**18))
def test_unlimited_refuses_nothing(name: str, found: int) -> None:
    UNLIMITED.check(name, found, "it")
