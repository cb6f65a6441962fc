"""Every sampling parameter at the door: any value is taken or refused by name."""

from __future__ import annotations

import functools
import operator
import re
from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.lang.ir import Gen

NAMES = [f.name for f in fields(SamplingParams)]
VALUES: list[Any] = [
    *(0, -1, 1, 2**31, 2**63, 10**400, 1e300, -1e300, float("nan"), float("inf"), 0.5),
    *("", "1", None, True, False, [], {}, (), [5], [None], {"a": 1}, b"x", object(), "\ud800"),
    *(
        np.int64(1),
        np.float32(0.5),
        np.bool_(True),
        np.array(1),
        np.array([1, 2]),
        np.float64("nan"),
    ),
]
PLAIN = (int, float, bool, str, type(None))


def is_plain(value: Any) -> bool:
    """Nothing but Python's own values, however deep."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return type(value) in PLAIN


@pytest.mark.parametrize(
    ("name", "value"),
    [*product(NAMES, VALUES)],
    ids=lambda v: re.sub(r" at 0x.*", "", repr(v))[:24],
)
def test_a_value_is_taken_as_pythons_own_or_refused_by_name(name: str, value: Any) -> None:
    for make in (
        lambda: SamplingParams.of({name: value}).validate(),
        lambda: replace(SamplingParams(), **{name: value}).validate(),
    ):
        taken, refusal = None, ""
        try:
            taken = make()
        except InvalidParamsError as error:
            refusal = str(error)
        if taken is None:
            assert name in refusal
            assert len(refusal) < 400
        else:
            assert is_plain(tuple(getattr(taken, n) for n in NAMES))
            assert hash(taken) == hash(taken.validate())
            assert taken == taken.validate()


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("top_k", np.int64(3), 3),
        ("temperature", np.float32(0.5), 0.5),
        ("seed", np.int32(-1), -1),
        ("ignore_eos", np.bool_(True), True),
        ("ignore_eos", 1, True),
        ("stop_token_ids", [np.int64(4), 5], (4, 5)),
        ("stop_token_ids", np.int64(4), (4,)),
        ("stop", "x", ("x",)),
        ("logit_bias", {"7": np.float32(1.5), 3: 1}, ((3, 1.0), (7, 1.5))),
        ("json_schema", True, "true"),
        ("json_schema", {}, "{}"),
    ],
)
def test_what_can_be_read_is_taken(name: str, given: Any, taken: Any) -> None:
    assert getattr(SamplingParams.of({name: given}).validate(), name) == taken


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 2**63}, r"top_k must be an integer from 1 to 2147483647, or -1, got 9223372"),
        ({"temperature": 10**400}, r"temperature must be a number in \[0, 1e\+06\], got a huge"),
        ({"top_p": 0}, r"top_p must be a number in \(0, 1\], got 0"),
        ({"n": True}, "n must be an integer from 1 to 2147483647, got True"),
        ({"stop_regex": [5]}, "stop_regex must be a text, got 5"),
        ({"stop_regex": "a("}, r"stop_regex 'a\(' at position 1"),
        ({"top_logprobs_num": -1}, "from 0 to 2147483647, got -1"),
        ({"json_schema": "[]"}, "json_schema must be an object, true or false"),
        ({"min_new_tokens": 3, "max_new_tokens": 2}, r"min_new_tokens \(3\) is larger"),
    ],
)
def test_a_refusal_says_what_would_be_right(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        SamplingParams.of(values).validate()


@given(
    st.sampled_from(["yes|no", "(?i)yes|no", "^a.b$", " a b  # c", "(?s)a.b", r"\w\d"]),
    st.lists(st.sampled_from([re.A, re.I, re.M, re.S, re.X]), max_size=3),
    st.sampled_from(["yes", "NO", "a\nb", "ab", " a b  # c", "\u00e95", "A.B", "x\na.b"]),
)
def test_a_compiled_pattern_is_its_text_with_its_flags(
    text: str, flags: list[re.RegexFlag], said: str
) -> None:
    pattern = re.compile(text, functools.reduce(operator.or_, flags, re.NOFLAG))
    params = SamplingParams().override(regex=pattern, stop_regex=[pattern, text]).validate()
    assert params.regex is not None
    for same in (params.regex, params.stop_regex[0]):
        assert bool(re.fullmatch(same, said)) == bool(pattern.fullmatch(said))
    gen = sgl.gen("a", regex=pattern)
    assert isinstance(gen, Gen)
    assert gen.sampling["regex"] == params.regex


def test_none_is_never_an_unknown_name() -> None:
    assert SamplingParams().override(custom_params=None) == SamplingParams()
