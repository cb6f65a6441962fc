"""Conversion of the JSON Schemas that OpenAI's clients send into plain JSON Schemas.

A schema is taken out of the object around it. If that object says `strict`, the schema is closed:
it allows no keys but those that it lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose values are plain data and contain no schemas."""

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")

_SAME_OBJECT = ("allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not", "dependentSchemas")
"""Keywords whose schemas apply to the same value as the keywords beside them."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords that map names to schemas."""

_WRAPPER = {"name", "description", "strict", "schema"}
"""Keys of the object around a schema in OpenAI's `response_format`."""


def unwrapped(given: Any) -> Any:
    """Return the schema in an OpenAI `response_format`, closed if `strict` is set.

    A value of another form is returned as it is.
    """
    if not isinstance(given, dict):
        return given
    if given.get("type") == "json_schema" and isinstance(given.get("json_schema"), dict):
        given = given["json_schema"]
    if "schema" not in given or not _WRAPPER.issuperset(given):
        return given
    return closed(given["schema"]) if given.get("strict") else given["schema"]


def closed(schema: Any) -> Any:
    """Return a copy of a schema in which objects allow only the keys listed in `properties`.

    A part of the schema without `properties` stays unchanged, and so does a part with
    `additionalProperties`, `patternProperties` or `unevaluatedProperties`. Parts that apply to the
    same object, such as the members of an `allOf`, also stay open: each would forbid the others'
    keys. OpenAI's clients expect `strict` schemas and pydantic models to be closed in this way.
    """
    shared: frozenset[str] = frozenset()
    while (found := frozenset(_shared_references(schema, shared))) != shared:
        shared = found  # what they refer to is shared, too
    return _closed(schema, shared)


def _closed(schema: Any, shared: frozenset[str], here: str = "#", alone: bool = True) -> Any:
    """Return the closed copy of a part of a schema.

    Args:
        shared: references to parts that stay open.
        here: reference to this part.
        alone: False if other parts apply to the same object.
    """
    if isinstance(schema, list):
        return [_closed(part, shared, here, alone) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner_alone = alone and here not in shared and not _combines(schema)
    made = {}
    for keyword, value in schema.items():
        at = f"{here}/{keyword}"
        if keyword in _VALUES:
            made[keyword] = value
        elif keyword in _NAMED and isinstance(value, dict):
            made[keyword] = {k: _closed(v, shared, f"{at}/{k}") for k, v in value.items()}
        else:
            made[keyword] = _closed(value, shared, at, keyword not in _SAME_OBJECT or inner_alone)
    names_all = isinstance(schema.get("properties"), dict) and not any(k in schema for k in _OPEN)
    if names_all and inner_alone:
        made["additionalProperties"] = False
    return made


def _combines(schema: dict[str, Any]) -> bool:
    """Return True if several parts of a schema apply to the same object."""
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or sum(k in _SAME_OBJECT for k in schema) + ("properties" in schema) > 1


def _shared_references(
    schema: Any, shared: frozenset[str], here: str = "#", alone: bool = True
) -> Iterator[str]:
    """Yield the references that apply to an object beside other parts of a schema.

    Args:
        shared: references that are known to do so.
        here, alone: as for `_closed`.
    """
    if isinstance(schema, list):
        for part in schema:
            yield from _shared_references(part, shared, here, alone)
    if not isinstance(schema, dict):
        return
    inner_alone = alone and here not in shared and not _combines(schema)
    if isinstance(schema.get("$ref"), str) and not inner_alone:
        yield schema["$ref"]
    for keyword, value in schema.items():
        at = f"{here}/{keyword}"
        if keyword in _NAMED and isinstance(value, dict):
            for name, part in value.items():
                yield from _shared_references(part, shared, f"{at}/{name}")
        elif keyword not in _VALUES:
            yield from _shared_references(
                value, shared, at, keyword not in _SAME_OBJECT or inner_alone
            )
