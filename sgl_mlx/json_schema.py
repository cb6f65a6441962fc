"""Closing of JSON Schemas: objects that do not say otherwise may have no other keys."""

from __future__ import annotations

from typing import Any

_VALUES = ("const", "enum", "default", "examples")
"""Keywords that hold data, in which nothing is a schema."""

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def closed(schema: Any) -> Any:
    """The schema with every object held to its named properties, unless it says otherwise.

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
    """A property may be called like a keyword, so maps of names are entered by themselves."""
    if keyword in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: closed(part) for name, part in value.items()}
    return closed(value)
