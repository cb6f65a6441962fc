"""Conversion of the JSON Schemas that OpenAI's clients send into plain JSON Schemas.

A schema is taken out of the object around it. If that object says `strict`, the schema is closed:
it allows no keys but those that it lists.
"""

from __future__ import annotations

from typing import Any

_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose values are plain data and contain no schemas."""

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")

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
    `additionalProperties`, `patternProperties` or `unevaluatedProperties`. OpenAI's clients expect
    `strict` schemas and pydantic models to be closed in this way.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: v if k in _VALUES else _closed_part(k, v) for k, v in schema.items()}
    names_all = isinstance(schema.get("properties"), dict) and not any(k in schema for k in _OPEN)
    return {**made, "additionalProperties": False} if names_all else made


def _closed_part(keyword: str, value: Any) -> Any:
    """Return the closed value of a schema's keyword.

    Some keywords, such as `properties`, map names to schemas: each of their schemas is closed.
    """
    if keyword in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: closed(part) for name, part in value.items()}
    return closed(value)
