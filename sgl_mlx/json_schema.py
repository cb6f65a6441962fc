"""JSON Schemas as OpenAI's clients give them, and as they mean them."""

from __future__ import annotations

from typing import Any

_VALUES = ("const", "enum", "default", "examples")
"""Keywords that hold data, in which nothing is a schema."""

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")

_WRAPPER = {"name", "description", "strict", "schema"}
"""Keys of the object that OpenAI's `response_format` has the schema in."""


def unwrapped(given: Any) -> Any:
    """Take a schema out of OpenAI's `response_format`, and close it if that is `strict`."""
    if not isinstance(given, dict):
        return given
    if given.get("type") == "json_schema" and isinstance(given.get("json_schema"), dict):
        given = given["json_schema"]
    if "schema" not in given or not _WRAPPER.issuperset(given):
        return given
    return closed(given["schema"]) if given.get("strict") else given["schema"]


def closed(schema: Any) -> Any:
    """Hold every object of a schema to its named properties, unless it says otherwise.

    OpenAI's clients mean this by `strict` and by a pydantic model: `extra="allow"` and
    dictionaries say otherwise by `additionalProperties`, which is kept.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: v if k in _VALUES else _closed_part(k, v) for k, v in schema.items()}
    names_all = isinstance(schema.get("properties"), dict) and not any(k in schema for k in _OPEN)
    return {**made, "additionalProperties": False} if names_all else made


def _closed_part(keyword: str, value: Any) -> Any:
    """Close a part; a property may be called like a keyword, so maps of names are entered."""
    if keyword in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: closed(part) for name, part in value.items()}
    return closed(value)
