"""Refusals of constraints speak of what the caller wrote, not of how it was translated."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.constraints.schema import _FORMATS, _NARROWER, _PATTERNS
from tests.runtime.constraints.walks import compiler

INNER = re.compile(r"\(\?P<|\(And|Regex|coerce|llguidance|≺EOS≻|retriev|registry|\\x\{")
slow = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

lengths = st.dictionaries(st.sampled_from(["minLength", "maxLength"]), st.integers(0, 40))
strings = st.builds(
    lambda kind, pattern, sizes: {"type": "string", **kind, **pattern, **sizes},
    st.sampled_from(sorted({*_FORMATS, *_NARROWER, *_PATTERNS})).map(lambda f: {"format": f})
    | st.just({}),
    st.sampled_from(["^a$", "b+", "^[0-9]{3}$"]).map(lambda p: {"pattern": p}) | st.just({}),
    lengths,
)
numbers = st.dictionaries(
    st.sampled_from(["minimum", "maximum", "multipleOf", "exclusiveMaximum"]), st.integers(-9, 9)
).map(lambda bounds: {"type": "integer", **bounds})
others = st.sampled_from(
    [
        {"type": "array", "uniqueItems": True},
        {"not": {}},
        {"$ref": "http://example.org/schema"},
        {"$ref": "#/nowhere"},
        {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]},
        {"enum": []},
        {"type": "strng"},
        {"contains": {"type": "integer"}},
    ]
)
schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(
    strings | numbers | others,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"allOf": parts})
        | inner.map(lambda part: {"type": "object", "properties": {"k": part}, "required": ["k"]})
    ),
    max_leaves=3,
)
GRAMMARS = [
    'start: "a" <nope>',
    'start: a*\na: "x" <|nope|>+',
    'start: %json {"type": "strng"}\nb: "x"*',
    "start: /[/+",
    'start: a+\nb: "x"',
    'start: a\na: a "x"',
]


def refusal(**constraint: str) -> str:
    """Return the message of a refused constraint; "" if it is taken."""
    try:
        compiler("byte-level").constraint(SamplingParams(**constraint))
    except InvalidParamsError as error:
        return str(error)
    return ""


@slow
@given(schemas)
def test_a_refused_schema_is_told_in_the_callers_words(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    told = refusal(json_schema=text)
    assert INNER.search(told) is None, told
    assert told.count("json_schema") == bool(told)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_refused_grammar_is_told_in_the_callers_words(grammar: str) -> None:
    told = refusal(grammar=grammar)
    assert told
    assert INNER.search(told) is None, told
