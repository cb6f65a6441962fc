"""JSON Schemas are followed as the standard and OpenAI's clients mean them."""

from __future__ import annotations

import datetime
import ipaddress
import json
import pathlib
import random
import re
import uuid
from decimal import Decimal
from typing import Any

import jsonschema
import pydantic
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.json_schema import closed
from sgl_mlx.runtime.constraints.schema import _FORMATS, _NARROWER, _PATTERNS
from sgl_mlx.sampling import SamplingParams
from tests.runtime.constraints.walks import walk

KIND = "byte-level"


def written(schema: Any, seeds: int = 10) -> list[str]:
    """The texts of random ways that came to their end."""
    text = SamplingParams().override(json_schema=schema).json_schema
    found = (walk(KIND, random.Random(seed), json_schema=text or "") for seed in range(seeds))
    return [text for text in found if text is not None]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=12), st.sampled_from(["string", "integer", "number", "boolean"]))
def test_a_format_that_nobody_knows_is_an_annotation(name: str, kind: str) -> None:
    for text in written({"type": kind, "format": name, "maxLength": 5}, 2):
        json.loads(text)


@pytest.mark.parametrize("name", sorted(_FORMATS | set(_NARROWER) | set(_PATTERNS)))
def test_every_format_that_is_known_is_written(name: str) -> None:
    texts = written({"type": "string", "format": name, "maxLength": 60}, 6)
    assert texts
    for text in texts:
        assert isinstance(json.loads(text), str)


@pytest.mark.parametrize("step", [7, 0.01, 0.5, 1000, 12345, 99991, 10**9, 1e-6])
def test_multiples_of_any_step_are_taken(step: float) -> None:
    for text in written({"type": "number", "multipleOf": step}, 3):
        assert Decimal(text) % Decimal(str(step)) == 0


TYPES = {
    "secret": pydantic.SecretStr,
    "path": pathlib.Path,
    "bytes": bytes,
    "base64": pydantic.Base64Bytes,
    "base64url": pydantic.Base64UrlBytes,
    "ip": pydantic.IPvAnyAddress,
    "ipv4-network": ipaddress.IPv4Network,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    "uuid4": pydantic.UUID4,
    "uuid7": pydantic.UUID7,
    "date": datetime.date,
    "any": Any,
    "two": pydantic.conlist(int, min_length=2, max_length=2),
}


@pytest.mark.parametrize("name", TYPES)
def test_what_is_written_for_pydantics_types_is_valid(name: str) -> None:
    model = pydantic.create_model("M", x=(TYPES[name], ...))
    for text in written(model, 25):
        model.model_validate_json(text)


@pytest.mark.parametrize("schema", [True, {}, "true"])
def test_a_schema_that_allows_everything_gives_json(schema: Any) -> None:
    for text in written(schema):
        json.loads(text)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (False, "nothing can match it"),
        ("3", "an object, true or false"),
        ("[]", "an object, true or false"),
        ({"type": "string", "pattern": "(?=a)b"}, r"pattern '\(\?=a\)b': look-ahead"),
        ({"type": "string", "pattern": "("}, r"pattern '\(' at position 0"),
        ({"type": "string", "pattern": "a++"}, "pattern 'a\\+\\+': a possessive"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
    ],
)
def test_what_cannot_be_followed_is_named_in_the_users_words(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidParamsError, match=rf"^json_schema .*{reason}"):
        written(schema)


@pytest.mark.filterwarnings("ignore:Possible")
@pytest.mark.parametrize("pattern", ["^[[x]{2}$", "^[a&&b]{3}$", r"^\w\d$", "a|^b", r"^[^\W]$"])
def test_patterns_are_not_read_in_rusts_dialect(pattern: str) -> None:
    for text in written({"type": "string", "pattern": pattern, "maxLength": 8}, 20):
        assert re.search(pattern, json.loads(text))


# -- pydantic and OpenAI ---------------------------------------------------------------------------


class Inner(pydantic.BaseModel):
    kind: bool


class Closed(pydantic.BaseModel):
    a: int = pydantic.Field(ge=0, le=9)
    inner: Inner
    many: list[Inner] = pydantic.Field(max_length=1)


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: bool
    names: dict[str, bool] = pydantic.Field(max_length=1)


def test_a_pydantic_model_gets_no_invented_keys() -> None:
    texts = written(Closed, 40)
    assert texts
    for text in texts:
        value = json.loads(text)
        assert value.keys() == {"a", "inner", "many"}
        assert value["inner"].keys() == {"kind"}


def test_a_pydantic_model_that_allows_others_may_get_them() -> None:
    schema = closed(Open.model_json_schema())
    assert schema["additionalProperties"] is True
    assert schema["properties"]["names"]["additionalProperties"] == {"type": "boolean"}


@st.composite
def combined(draw: st.DrawFn, depth: int = 2) -> tuple[dict[str, Any], dict[str, int], set[str]]:
    """A schema, an object that it means, and the references that it makes."""
    keys = draw(st.lists(st.sampled_from("abcdef"), max_size=2, unique=True))
    schema: dict[str, Any] = {"type": "object"}
    if keys:
        schema["properties"] = {key: {"type": "integer"} for key in keys}
    meant, references = dict.fromkeys(keys, 1), set[str]()
    for keyword in draw(st.sets(st.sampled_from(["allOf", "anyOf", "$ref"]))) if depth else ():
        count = 1 if keyword == "$ref" else draw(st.integers(1, 3))
        parts = [draw(combined(depth - 1)) for _ in range(count)]
        for _, inner, deeper in parts if keyword == "allOf" else parts[:1]:
            meant |= inner
            references |= deeper
        written = [part[0] for part in parts]
        schema[keyword] = "#/$defs/Base" if keyword == "$ref" else written
        if keyword == "$ref":
            references.add(json.dumps(written[0]))
    return schema, meant, references


A_INSIDE = {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}]}
B_BESIDE = {"type": "object", "properties": {"b": {"type": "integer"}}, "$ref": "#/$defs/Base"}


@settings(deadline=None, max_examples=300)
@given(combined())
@example((B_BESIDE, {"a": 1, "b": 1}, {json.dumps(A_INSIDE)}))
def test_parts_of_one_object_do_not_forbid_each_others_keys(
    drawn: tuple[dict[str, Any], dict[str, int], set[str]],
) -> None:
    schema, meant, references = drawn
    assume(len(references) < 2)
    whole = {**schema, "$defs": {"Base": json.loads(min(references, default="{}"))}}
    jsonschema.Draft202012Validator(whole).validate(meant)
    jsonschema.Draft202012Validator(closed(whole)).validate(meant)


def test_only_objects_that_name_their_properties_are_closed() -> None:
    schema = {
        "properties": {
            "properties": {"type": "object"},
            "b": {"properties": {"c": {}}},
            "e": {"anyOf": [{"patternProperties": {"x": {}}, "properties": {}}]},
        },
        "$defs": {"d": {"properties": {}}},
        "default": {"properties": {}},
    }
    made = closed(schema)
    assert made["additionalProperties"] is False
    assert made["properties"]["properties"] == {"type": "object"}
    assert made["properties"]["b"]["additionalProperties"] is False
    assert made["$defs"]["d"]["additionalProperties"] is False
    assert "additionalProperties" not in made["properties"]["e"]["anyOf"][0]
    assert made["default"] == {"properties": {}}


CAR = {"type": "object", "properties": {"doors": {"type": "integer", "minimum": 2, "maximum": 5}}}
WRAPPED = {"name": "car", "schema": CAR, "description": "a car"}


@pytest.mark.parametrize("strict", [True, False, None])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_response_format_of_openai_is_its_schema(strict: bool | None, as_text: bool) -> None:
    inner = WRAPPED if strict is None else {**WRAPPED, "strict": strict}
    expected = {**CAR, "additionalProperties": False} if strict else CAR
    for form in (inner, {"type": "json_schema", "json_schema": inner}):
        found = SamplingParams().override(json_schema=json.dumps(form) if as_text else form)
        assert json.loads(found.json_schema or "") == expected
    if strict:
        for text in written(inner, 30):
            assert set(json.loads(text)) <= {"doors"}


def test_a_property_called_schema_is_no_response_format() -> None:
    plain = {"type": "object", "properties": {"schema": {}}, "schema": 1}
    assert json.loads(SamplingParams().override(json_schema=plain).json_schema or "") == plain


def test_a_plain_schema_is_left_as_it_says() -> None:
    text = SamplingParams().override(json_schema={"properties": {"a": {}}}).json_schema
    assert text == '{"properties": {"a": {}}}'


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["integer", "number"]),
    st.sampled_from([2**63 - 1, 2**64, 10**19, 1e20, 3.4e38, 1.7e308]),
    st.booleans(),
    st.booleans(),
)
def test_bounds_as_far_as_other_languages_write_them_are_taken(
    kind: str, far: float, exclusive: bool, both: bool
) -> None:
    low, high = ("exclusiveMinimum", "exclusiveMaximum") if exclusive else ("minimum", "maximum")
    for schema in ({low: -far, high: far}, {high: far} if both else {low: -far}):
        for text in written({"type": kind, **schema}, 2):
            assert -far <= json.loads(text) <= far


@pytest.mark.parametrize(
    ("name", "right"),
    [("STRING", "string"), ("str", "string"), ("int", "integer"), ("dict", "object")],
)
def test_a_type_of_another_language_names_the_right_one(name: str, right: str) -> None:
    with pytest.raises(InvalidParamsError, match=f"did you mean '{right}'"):
        written({"type": name}, 1)
