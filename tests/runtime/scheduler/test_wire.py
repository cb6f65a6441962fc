"""Plans and results are plain data: JSON and back gives what was there."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.tier import Grow, GrowStates, Load, LoadState, Spill, SpillState
from sgl_mlx.runtime.scheduler.plan import (
    Decode,
    Extend,
    PicturePart,
    Plan,
    Row,
    Scores,
    StepResult,
)
from sgl_mlx.runtime.scheduler.wire import from_json, to_json

numbers = st.integers(0, 2**40)
many = st.lists(numbers, max_size=6).map(tuple)
names = st.sampled_from(["is", "Row", ""]) | st.text(max_size=4)
floats = st.floats(allow_nan=False)
scores = st.builds(
    Scores,
    st.lists(st.tuples(st.none() | floats, numbers), max_size=3).map(tuple),
    st.lists(st.lists(st.tuples(floats, numbers), max_size=2).map(tuple), max_size=3).map(tuple),
)
params = st.builds(
    SamplingParams,
    temperature=floats,
    stop=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    logit_bias=st.lists(st.tuples(numbers, floats), max_size=2).map(tuple),
    regex=st.none() | st.text(max_size=5),
    seed=st.none() | numbers,
)
rows = st.builds(
    Row,
    id=names,
    tokens=many,
    prefix=many,
    slots=many,
    position=numbers,
    sample=st.booleans(),
    params=params,
    seed=numbers,
    output=many,
    history=many,
    targets=many,
    prefix_positions=st.none() | many,
    constraint=st.none() | names,
    pictures=st.lists(st.builds(PicturePart, numbers, numbers, numbers, names), max_size=2).map(
        tuple
    ),
    state=st.none() | st.tuples(numbers, numbers),
)
several_rows = st.lists(rows, max_size=4).map(tuple)
keys = st.lists(names, max_size=3).map(tuple)
transfers = st.lists(
    st.builds(Spill, keys, many)
    | st.builds(Load, many, numbers, numbers)
    | st.builds(Grow, numbers)
    | st.builds(GrowStates, numbers)
    | st.builds(SpillState, names, numbers, many)
    | st.builds(LoadState, numbers, many, numbers, numbers),
    max_size=3,
).map(tuple)
plans = st.builds(Extend, several_rows, transfers) | st.builds(
    Decode, keys, numbers, st.booleans(), several_rows, transfers
)
results = st.builds(
    StepResult,
    st.dictionaries(names, many, max_size=3),
    st.dictionaries(names, scores, max_size=3),
    st.dictionaries(names, scores, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(plans)
def test_a_plan_comes_back_as_it_was(plan: Plan) -> None:
    assert from_json(to_json(plan)) == plan


@settings(max_examples=200, deadline=None)
@given(results)
def test_a_result_comes_back_as_it_was(result: StepResult) -> None:
    assert from_json(to_json(result)) == result


def test_an_impossible_token_keeps_its_log_probability() -> None:
    result = StepResult({"a": (1,)}, token_scores={"a": Scores(((-math.inf, 1),))})
    assert from_json(to_json(result)) == result


def test_a_callable_is_refused_by_name() -> None:
    row = Row("a", (1,), (), (1,), 0, True, SamplingParams())
    hidden = dataclasses.replace(row, constraint=test_a_callable_is_refused_by_name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be plain data, but holds <function"):
        to_json(Extend((hidden,)))


def test_other_text_is_refused() -> None:
    for text in ("[1, 2]", "7", '{"a": [1]}'):
        with pytest.raises(ValueError, match="expected a plan or a step result"):
            from_json(text)


def held_types(found: Any) -> set[Any]:
    """All types that values of a type may hold, at any depth."""
    if typing.get_args(found):
        return set().union(*map(held_types, typing.get_args(found)))
    if dataclasses.is_dataclass(found):
        return set().union(*map(held_types, typing.get_type_hints(found).values()))
    return {found}


def test_the_types_of_plans_are_plain() -> None:
    plain = {int, float, str, bool, type(None), ...}
    assert held_types(Plan | StepResult) <= plain
