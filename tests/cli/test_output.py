"""Documents of `--json` are JSON, whatever a program returns."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_mlx.cli.output import print_document

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
odd = st.sampled_from(
    [
        *(float("nan"), float("inf"), b"ab", {1, 2}, object(), len, 1j, datetime.date(2020, 1, 2)),
        *({(1, 2): 3}, {None: 1}, {b"k": {2: 3}}, range(3), "\ud83d", {"\ud83d": 1}),
        *(np.float32(0.5), np.int64(3), np.bool_(True), np.arange(3), np.array([[np.nan]])),
    ]
)


def printed(value: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    print_document({"value": value})

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(capsys.readouterr().out, parse_constant=refuse)["value"]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda value: printed(value, capsys)


same_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_fixture
@given(value=plain)
def test_what_json_holds_is_printed_as_it_is(shown: Any, value: Any) -> None:
    assert shown(value) == value


@same_fixture
@given(value=st.lists(odd | st.lists(odd, max_size=2)))
def test_anything_else_is_still_json(shown: Any, value: Any) -> None:
    assert len(shown(value)) == len(value)


def test_values_of_other_kinds_become_json(shown: Any) -> None:
    assert shown(np.float32(0.5)) == 0.5
    assert shown({(1, 2): [np.int64(3), np.bool_(True)]}) == {"(1, 2)": [3, True]}
    assert shown(np.arange(3)) == [0, 1, 2]
    assert shown(float("nan")) == "nan"
    assert shown(b"ab") == "b'ab'"


def test_a_value_that_contains_itself_ends(shown: Any) -> None:
    value: list[Any] = [1]
    value.append(value)
    found = shown(value)
    assert found[0] == found[1][0] == 1
