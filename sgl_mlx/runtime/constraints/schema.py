"""Preparation of JSON Schemas for llguidance, which accepts less than the standard does.

A `format` that llguidance does not know is ignored, as the standard allows, or replaced by a
narrower format or a pattern. A `pattern` is read so that its matches are matches in ECMAScript and
in Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from sgl_mlx.errors import InvalidParamsError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.constraints.python_regex import short, to_rust

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties"),
    *("unevaluatedProperties", "propertyNames", "not", "if", "then", "else"),
)

_FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
    *("uri", "unknown"),
}
"""Values of `format` that llguidance supports."""

_NARROWER = {
    **dict.fromkeys(("url", "uri-reference", "iri", "iri-reference"), "uri"),
    **dict.fromkeys(("ipvanyaddress", "ipvanynetwork", "ipvanyinterface"), "ipv4"),
    **dict.fromkeys(("ipv4network", "ipv4interface"), "ipv4"),
    **dict.fromkeys(("ipv6network", "ipv6interface"), "ipv6"),
    "idn-email": "email",
    "idn-hostname": "hostname",
}
_FAR = 10**15
_FARTHEST = 9 * 10**18
"""Bounds farther from zero than this, which llguidance cannot express, become this."""
_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-%d[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_PATTERNS = {
    **{f"uuid{version}": _UUID % version for version in range(1, 9)},
    "base64": "^(?:[A-Za-z0-9+/]{4})*$",
    "base64url": "^(?:[A-Za-z0-9_-]{4})*$",
}
"""Patterns for other values of `format`, which pydantic writes."""

_ENDLESS = ("time", "date-time", "duration")
_FEW_DIGITS = "^[^0-9]*(?:[0-9]{1,6}[^0-9]+)*[0-9]{0,6}$"
"""Pattern with at most 6 consecutive digits, so that a fraction or a number of years ends."""

_INTEGERS = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32)},
    "int64": (-_FARTHEST, _FARTHEST),  # llguidance computes bounds with floats
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32)},
}
"""Smallest and largest value of each of OpenAPI's integer formats."""

_SAME_AS = {r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?0*\d+(?:\.\d*)?$"}
"""Replacement without look-ahead for pydantic's pattern of a serialized `Decimal`."""


def prepare_schema(text: str, limits: Limits) -> str:
    """Rewrite a JSON schema so that llguidance accepts it.

    Raises:
        InvalidParamsError: the text is not a JSON schema, the schema is `false`, or it contains a
            pattern that no grammar can express.
        LimitError: the schema is nested too deeply, or has too many references.
    """
    try:
        depth = _depth(text)
        limits.check("max_schema_depth", depth, f"the JSON schema has {depth} levels")
        schema = json.loads(text)
        references = len(set(_references(schema)))
        told = f"the JSON schema has {references:,} different references"
        limits.check("max_grammar_rules", references, told)
        if schema is False:
            raise InvalidParamsError("nothing can match it")
        if schema is not True and not isinstance(schema, dict):
            raise InvalidParamsError("a JSON schema is an object, true or false")
        return json.dumps({} if schema is True else _prepared(schema))
    except LimitError:
        raise
    except InvalidParamsError as e:
        raise InvalidParamsError(f"json_schema {short(text)}: {e}") from e
    except (ValueError, RecursionError) as e:
        raise InvalidParamsError(f"json_schema {short(text)} is no JSON: {e}") from e


def _depth(text: str) -> int:
    """Return the most brackets that are open at once in a JSON text; strings do not count."""
    depth = deepest = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in "}]":
            depth -= 1
    return deepest


def _references(part: Any) -> Iterator[str]:
    """Yield the values of `$ref` in a schema."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    for inner in part if isinstance(part, list) else ():
        yield from _references(inner)


def _prepared(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    made = {**schema, **dict(_with_parts_prepared(schema))}
    if made.get("uniqueItems") is False:
        del made["uniqueItems"]
    if isinstance(made.get("pattern"), str):
        made["pattern"] = _pattern(made["pattern"])
    if isinstance(made.get("patternProperties"), dict):
        made["patternProperties"] = {_pattern(p): s for p, s in made["patternProperties"].items()}
    if isinstance(made.get("format"), str):
        _set_format(made)
    for name in _BOUNDS:
        made |= _nearer(name, made.get(name))
    if isinstance(made.get("multipleOf"), (int, float)) and _is_small(made["multipleOf"]):
        _bound_multiple(made)
    return made


def _nearer(name: str, bound: Any) -> dict[str, Any]:
    """Return a bound as a keyword and its value; a bound that is too far becomes a nearer one."""
    if not isinstance(bound, (int, float)):
        return {}
    lower = "inimum" in name
    if (bound < -_FARTHEST) if lower else (bound > _FARTHEST):
        return {name: -_FARTHEST if lower else _FARTHEST}
    return {}


def _is_small(step: float) -> bool:
    """Return True if llguidance supports bounds beside a `multipleOf` of `step`."""
    digits = Decimal(str(step)).normalize().as_tuple().digits
    return 0 < step <= 1000 and int("".join(map(str, digits))) <= 1000


def _bound_multiple(schema: dict[str, Any]) -> None:
    """Add missing bounds to a schema with `multipleOf`, so that numbers cannot be endless."""
    low, high = (schema.get(name, 0) for name in ("minimum", "maximum"))
    if not {"minimum", "exclusiveMinimum"} & schema.keys() and isinstance(high, (int, float)):
        schema["minimum"] = min(high, 0) - _FAR
    if not {"maximum", "exclusiveMaximum"} & schema.keys() and isinstance(low, (int, float)):
        schema["maximum"] = max(low, 0) + _FAR


def _with_parts_prepared(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        if name in _MAPS and isinstance(value, dict):
            yield name, {key: _prepared(part) for key, part in value.items()}
        elif name in _LISTS and isinstance(value, list):
            yield name, [_prepared(part) for part in value]
        elif name in _SINGLE:
            yield name, _prepared(value)


def _set_format(schema: dict[str, Any]) -> None:
    """Replace `format` in place by a supported format, a pattern or bounds; else remove it."""
    kind, types = schema.pop("format"), schema.get("type", "string")
    if types == "integer" and kind in _INTEGERS and not any(b in schema for b in _BOUNDS):
        schema["minimum"], schema["maximum"] = _INTEGERS[kind]
    if types != "string" and not (isinstance(types, list) and "string" in types):
        return
    if kind in _FORMATS or kind in _NARROWER:
        schema["format"] = _NARROWER.get(kind, kind)
        if kind in _ENDLESS:
            schema.setdefault("pattern", _FEW_DIGITS)
    elif kind in _PATTERNS:
        schema.setdefault("pattern", _PATTERNS[kind])


def _pattern(pattern: str) -> str:
    return to_rust(_SAME_AS.get(pattern, pattern), what="pattern", search=True)
