"""JSON schemas by family, each so bounded that a sample fits into a few dozen tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

BIT: Schema = {"type": "boolean"}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
WORD: Schema = {"type": "string", "pattern": "^[a-z]{1,6}$"}
SHORT: Schema = {"type": "string", "maxLength": 6}
COLOUR: Schema = {"enum": ["red", "green", "blue"]}
PRICE: Schema = {"type": "number", "minimum": 0, "maximum": 99, "multipleOf": 0.01}
SIMPLE = (BIT, DIGIT, WORD, SHORT, COLOUR, PRICE, {"type": "null"}, {"const": "fixed"})

UNSUPPORTED: list[Schema] = [
    {"type": "array", "items": BIT, "maxItems": 2, "uniqueItems": True},
    {"type": "array", "contains": {"const": 1}, "maxItems": 3},
    {"type": "array", "items": DIGIT, "maxItems": 3, "minContains": 1, "contains": DIGIT},
    {"type": "array", "unevaluatedItems": False},
    {"type": "object", "unevaluatedProperties": False},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    {"not": {"type": "string"}},
    {"if": {"const": 1}, "then": {"const": 1}, "else": {"const": 2}},
    {"oneOf": [DIGIT, {"type": "integer", "minimum": 5, "maximum": 12}]},
    {"type": "string", "pattern": "(?=a)a"},
    {"type": "string", "pattern": "(a)\\1"},
    {"$ref": "https://example.com/schema.json"},
]
"""Schemas that the compiler cannot express; it has to say so."""

UNSATISFIABLE: list[Schema] = [
    {"enum": []},
    {"anyOf": []},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"type": "integer", "minimum": 1, "maximum": 4, "multipleOf": 7},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "array", "minItems": 3, "maxItems": 2},
    {"type": "string", "format": "date", "pattern": "^x"},
    {"type": "object", "required": ["a"], "additionalProperties": False},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
]
"""Nothing finite validates."""


def supported() -> list[Schema]:
    """All families, one after another."""
    families = (
        *(_types(), _enums(), _strings(), _formats(), _integers(), _numbers(), _arrays()),
        *(_tuples(), _objects(), _open_objects(), _nested(), _references(), _unions(), _records()),
    )
    distinct = {json.dumps(schema): schema for schema in itertools.chain.from_iterable(families)}
    return list(distinct.values())


def record(properties: Schema, **more: Any) -> Schema:
    """A closed object; all its keys are required unless `required` says which."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


def _types() -> Iterator[Schema]:
    yield from ({"type": "null"}, {"type": "boolean"})
    yield {"type": "object", "additionalProperties": False}
    yield {"type": "array", "maxItems": 0}
    bounds = {"minimum": -99, "maximum": 99, "multipleOf": 1, "maxLength": 5, "maxItems": 0}
    names = ("null", "boolean", "integer", "number", "string", "array")
    for pair in itertools.combinations(names, 2):
        yield {"type": list(pair), **bounds}


def _enums() -> Iterator[Schema]:
    for values in (
        *([1], [1, 2, 3], [-1, 0], [1.5, 2.25], ["a"], ["a", "ab", "abc"], ["yes", "no"]),
        *([None], [True], [False, None], [1, "1", None, True], [[], [1]], [{}, {"a": 1}]),
        *(["é", "ü", "日本"], ['say "hi"', "back\\slash"], ["line\nbreak", "tab\t"], [""]),
        *(["New York", "New Delhi", "New Orleans"], [{"a": [1, {"b": None}]}], [0, -0.5]),
    ):
        yield {"enum": values}
        yield {"const": values[-1]}
    for values in (["small", "large"], ["x", "y", "z"]):
        yield {"type": "string", "enum": values}


def _strings() -> Iterator[Schema]:
    for low, high in ((0, 0), (0, 1), (1, 1), (2, 5), (3, 3), (0, 12), (8, 12)):
        yield {"type": "string", "minLength": low, "maxLength": high}
    for pattern in (
        *("^[a-z]{3}$", "^[A-Z][a-z]{1,8}$", "^(cat|dog)s?$", "^[0-9]{3}-[0-9]{4}$", "^a?b?c?$"),
        *("^#[0-9a-f]{6}$", r"^\d{1,4}$", r"^[\w.]{1,6}$", "^(ab){1,4}$", r"^\(\d\)$", "^$"),
        *(
            "^[^0-9]{2,4}$",
            "^x{2}(y|z)$",
            r"^v\d\.\d\.\d$",
            "^[äöü]{2}$",
            "^[A-F0-9]{2}(:[A-F0-9]{2})$",
        ),
        *("^(Mr|Ms)\\. [A-Z][a-z]{2,7}$", "^.{3}$", "^(?:one|two)(?:,(?:one|two)){0,2}$"),
    ):
        yield {"type": "string", "pattern": pattern}
    for pattern in ("a", "^ab", "ab$", "[0-9]{2}", "(x|y)z"):
        yield {"type": "string", "pattern": pattern, "maxLength": 10}
    yield {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 6}


def _formats() -> Iterator[Schema]:
    for name in ("time", "uuid", "ipv4", "duration"):
        yield {"type": "string", "format": name, "maxLength": 40}
    for name in ("date", "date-time"):  # RFC 3339 knows a year 0, Python's calendar does not
        yield {"type": "string", "format": name, "maxLength": 40, "pattern": "^[12]"}
    for name in ("email", "hostname", "ipv6"):
        yield {"type": "string", "format": name, "maxLength": 24}
    yield record({"day": {"type": "string", "format": "date", "pattern": "^20"}})


def _integers() -> Iterator[Schema]:
    for low, high in ((0, 0), (0, 9), (1, 10), (-5, 5), (10, 99), (100, 999), (-1000, -1), (7, 8)):
        yield {"type": "integer", "minimum": low, "maximum": high}
        yield {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
    for step in (2, 3, 5, 7, 10, 25):
        yield {"type": "integer", "minimum": 0, "maximum": 200, "multipleOf": step}
    yield {"type": "integer", "minimum": -20, "maximum": 20, "multipleOf": 4}


def _numbers() -> Iterator[Schema]:
    for low, high in ((0, 1), (-1, 1), (0, 100), (2.5, 3.5), (-10, -9), (0.1, 0.5)):
        for step in (0.1, 0.25, 0.01):
            yield {"type": "number", "minimum": low, "maximum": high, "multipleOf": step}
    yield {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.5}


def _arrays() -> Iterator[Schema]:
    for item, (low, high) in itertools.product(SIMPLE, ((0, 2), (1, 3), (2, 2))):
        yield {"type": "array", "items": item, "minItems": low, "maxItems": high}
    yield {"type": "array", "items": {"type": "array", "items": BIT, "maxItems": 2}, "maxItems": 2}


def _tuples() -> Iterator[Schema]:
    for first, second in itertools.combinations(SIMPLE, 2):
        yield {"type": "array", "prefixItems": [first, second], "items": False, "minItems": 2}
    yield {"type": "array", "prefixItems": [BIT], "items": DIGIT, "minItems": 1, "maxItems": 3}
    yield {"type": "array", "prefixItems": [BIT, WORD], "items": False}


def _objects() -> Iterator[Schema]:
    for item in SIMPLE:
        yield record({"value": item})
        yield record({"value": item}, required=[])
        yield record({"kind": COLOUR, "value": item}, required=["kind"])
    for first, second, third in itertools.combinations(SIMPLE[:6], 3):
        yield record({"a": first, "b": second, "c": third})
        yield record({"a": first, "b": second, "c": third}, required=["b"])
    names = ("with space", 'quote"d', "ünï", "a/b", "$ref", "", "type", "x" * 20)
    for name in names:
        yield record({name: DIGIT})


def _open_objects() -> Iterator[Schema]:
    for item in (BIT, DIGIT, WORD):
        yield {
            "type": "object",
            "patternProperties": {"^[xy][0-9]$": item},
            "additionalProperties": False,
            "maxProperties": 2,
        }
        yield {
            "type": "object",
            "properties": {"id": DIGIT},
            "required": ["id"],
            "patternProperties": {"^k[a-c]$": item},
            "additionalProperties": False,
            "maxProperties": 3,
        }


def _nested() -> Iterator[Schema]:
    for item in SIMPLE:
        yield record({"outer": record({"inner": item})})
        yield record({"list": {"type": "array", "items": record({"v": item}), "maxItems": 2}})
        yield {"type": "array", "items": record({"v": item}), "minItems": 1, "maxItems": 2}
        yield record({"a": record({"b": record({"c": item}, required=[])}), "d": BIT})


def _references() -> Iterator[Schema]:
    for item in SIMPLE:
        yield {"$defs": {"item": item}, "$ref": "#/$defs/item"}
        yield {
            **record({"a": {"$ref": "#/$defs/t"}, "b": {"$ref": "#/$defs/t"}}),
            "$defs": {"t": item},
        }
    point = record({"x": DIGIT, "y": DIGIT})
    yield {
        **record({"from": {"$ref": "#/$defs/p"}, "to": {"$ref": "#/$defs/p"}}),
        "$defs": {"p": point},
    }
    yield {"definitions": {"p": point}, "$ref": "#/definitions/p"}
    chain = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": DIGIT}
    yield {"$defs": chain, "$ref": "#/$defs/a"}
    yield {**record({"a": DIGIT, "b": {"$ref": "#/properties/a"}})}


def _unions() -> Iterator[Schema]:
    for first, second in itertools.combinations(SIMPLE[:6], 2):
        yield {"anyOf": [first, second]}
    for item in SIMPLE[:6]:
        yield record({"maybe": {"anyOf": [item, {"type": "null"}]}})
    shapes = [record({"kind": {"const": k}, k: DIGIT}) for k in ("circle", "square")]
    yield {"anyOf": shapes}
    yield {"oneOf": shapes}
    yield {"oneOf": [WORD, {"type": "null"}]}
    yield {"oneOf": [{"enum": ["a"]}, {"enum": ["b"]}]}
    yield {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 6}]}
    yield {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]}
    yield {"allOf": [{"properties": {"a": DIGIT}}, record({"a": {"type": "integer"}})]}


def _records() -> Iterator[Schema]:
    """Schemas that people write."""
    yield record({"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}})
    yield record({"title": SHORT, "tags": {"type": "array", "items": COLOUR, "maxItems": 2}})
    yield record({"sentiment": {"enum": ["positive", "negative", "neutral"]}, "score": DIGIT})
    yield record({"answer": BIT, "reason": {"type": "string", "maxLength": 20}})
    yield record({"city": WORD, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})
    yield record({"currency": {"enum": ["EUR", "USD"]}, "amount": PRICE})
