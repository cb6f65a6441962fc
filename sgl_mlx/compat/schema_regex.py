"""Regular expressions for JSON Schemas, for programs that pass them to `gen(regex=...)`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sgl_mlx.errors import NotYetError

_SPACE = r"[ \n]?"
_STRING = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
_CHARACTER = r'([^"\\\x00-\x1f]|\\["\\/bfnrt])'
_INTEGER = r"-?(0|[1-9][0-9]*)"
_KINDS = {
    "string": _STRING,
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]+)?",
    "boolean": "(true|false)",
    "null": "null",
}


def build_regex_from_object(object: Any, whitespace_pattern: str | None = None) -> str:
    """Return a regular expression that matches the JSON texts of a schema.

    Properties have to come in the order of the schema. Properties that the schema's list `required`
    does not name may be missing. `gen(json_schema=...)` needs no regular expression, and supports
    more of JSON Schema.

    Args:
        object: a pydantic model class, a dictionary, or JSON text.
        whitespace_pattern: a regular expression for the white space beside brackets, commas and
            colons; by default at most one space or line end.

    Raises:
        NotYetError: a part of the schema cannot be expressed; the message names the part.
    """
    if hasattr(object, "model_json_schema"):
        object = object.model_json_schema()
    schema = json.loads(object) if isinstance(object, str) else object
    return _Writer(schema, _SPACE if whitespace_pattern is None else whitespace_pattern).of(schema)


class _Writer:
    """A writer of regular expressions for the parts of one schema."""

    def __init__(self, root: Any, space: str) -> None:
        self._root = root
        self._space = space
        self._open: list[str] = []

    def of(self, schema: Any) -> str:
        if not isinstance(schema, Mapping):
            raise NotYetError(f"the schema {schema!r} allows any value; give it a type")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema:
            return re.escape(json.dumps(schema["const"], ensure_ascii=False))
        if "enum" in schema:
            texts = [json.dumps(value, ensure_ascii=False) for value in schema["enum"]]
            return _either(map(re.escape, texts))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return _either(self.of(part) for part in schema[word])
        if len(schema.get("allOf", ())) == 1:
            return self.of(schema["allOf"][0])
        return self._typed(schema)

    def _typed(self, schema: Mapping[str, Any]) -> str:
        kind = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kind, list):
            return _either(self.of({**schema, "type": each}) for each in kind)
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return self._string(schema)
        if kind in _KINDS:
            return _KINDS[kind]
        raise NotYetError(f"the schema {dict(schema)!r} needs a type")

    def _string(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            return f'"{schema["pattern"].removeprefix("^").removesuffix("$")}"'
        if "format" in schema:
            raise NotYetError(f"format {schema['format']!r} has no expression here; give a pattern")
        if "minLength" in schema or "maxLength" in schema:
            count = _times(schema.get("minLength", 0), schema.get("maxLength"))
            return f'"{_CHARACTER}{count}"'
        return _STRING

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties", {})
        if not properties:
            return rf"\{{{self._space}\}}"
        required = set(schema.get("required", ()))
        members = [(self._member(k, v), k in required) for k, v in properties.items()]
        return rf"\{{{self._space}{self._members(members)}{self._space}\}}"

    def _member(self, name: str, schema: Any) -> str:
        key = re.escape(json.dumps(name, ensure_ascii=False))
        return f"{key}{self._space}:{self._space}{self.of(schema)}"

    def _members(self, members: list[tuple[str, bool]]) -> str:
        """Return the pattern of an object's members in order, with commas between them.

        Each of `members` is a pair: the member's pattern, and True if the member is required.
        """
        comma = f"{self._space},{self._space}"
        firsts = []
        for i, (first, required) in enumerate(members):
            rest = "".join(
                f"{comma}{text}" if needed else f"({comma}{text})?"
                for text, needed in members[i + 1 :]
            )
            firsts.append(first + rest)
            if required:
                return _either(firsts)
        return f"({_either(firsts)})?"

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self.of(schema.get("items", {"type": [*_KINDS]}))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return rf"\[{self._space}\]"
        more = _times(max(least - 1, 0), None if most is None else most - 1)
        items = f"{item}({self._space},{self._space}{item}){more}"
        return rf"\[{self._space}{items if least else f'({items})?'}{self._space}\]"

    def _reference(self, path: str) -> str:
        if path in self._open:
            raise NotYetError(f"{path} contains itself; a regular expression cannot say that")
        part = self._root
        for name in path.removeprefix("#/").split("/"):
            part = part[name]
        self._open.append(path)
        try:
            return self.of(part)
        finally:
            self._open.pop()


def _either(texts: Any) -> str:
    return f"({'|'.join(texts)})"


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"
