"""Lark grammars that force a tool call, or reasoning followed by JSON of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sgl_mlx.json_schema import closed
from sgl_mlx.server.engine import ServedTokenizer
from sgl_mlx.server.tools.calls import Tool

_STYLE = {
    "x-guidance": {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
        "lenient": True,
    }
}
"""Options of llguidance: spaces as `json.dumps` writes; unsupported schema keywords are ignored."""

_NO_FORMATS: Mapping[str, Any] = MappingProxyType({})
_ANNOTATIONS = ("description", "title", "examples", "default", "$schema", "$id", "$comment")
_MAPS = ("properties", "$defs", "definitions", "patternProperties")


@dataclass(frozen=True)
class Format:
    """The grammar of a tool that takes free text: a Lark grammar, or a regular expression."""

    syntax: str
    definition: str


def forced_call(
    tools: Sequence[Tool],
    tokenizer: ServedTokenizer,
    thought_end: str | None = None,
    formats: Mapping[str, Format] = _NO_FORMATS,
) -> str:
    """Return a grammar for one call of one of the tools, in the Hermes format.

    A call of a tool with a `Format` has the tool's free text on the lines after `{"name": ...}`.

    Args:
        formats: formats of the tools that take free text, by tool name.
        thought_end: end tag of reasoning if the prompt ends inside reasoning, else None. The
            answer is then free up to this tag.
    """
    start, end = (_mark(mark, tokenizer) for mark in ("<tool_call>", "</tool_call>"))
    names = [f"call{i}" for i in range(len(tools))]
    rules = [
        _call_rule(name, tool, formats.get(tool["function"]["name"]))
        for name, tool in zip(names, tools, strict=True)
    ]
    call = f'{start} "\\n" ({" | ".join(names)}) "\\n" {end}'
    return _after_thoughts(call, rules, tokenizer, thought_end)


def thoughts_then_schema(schema: Any, tokenizer: ServedTokenizer, thought_end: str) -> str:
    """Return a grammar for free reasoning up to the tag `thought_end`, then JSON of a schema."""
    rule = f"value: %json {_json(schema if isinstance(schema, dict) else {})}"
    return _after_thoughts("value", [rule], tokenizer, thought_end)


def _after_thoughts(
    body: str, rules: Sequence[str], tokenizer: ServedTokenizer, thought_end: str | None
) -> str:
    if thought_end is None:
        return "\n".join([f"start: {body}", *rules])
    mark = _mark(thought_end, tokenizer)
    if mark.startswith("<"):
        thought = [f"start: thought {mark} gap {body}", "thought: /(.|\\n)*/"]
    else:
        escaped = thought_end.replace("/", "\\/").replace("[", "\\[").replace("]", "\\]")
        escaped = escaped.replace("|", "\\|")
        thought = [f"start: thought gap {body}", f"thought[lazy]: /(.|\\n)*{escaped}/"]
    return "\n".join([*thought, "gap: /\\n{0,2}/", *rules])


def _mark(text: str, tokenizer: ServedTokenizer) -> str:
    """Return a tag as a grammar terminal: its special token if it has one, else quoted text."""
    token = tokenizer.added_token(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _call_rule(rule: str, tool: Tool, format: Format | None) -> str:
    if format is None:
        return f"{rule}: %json {_call_schema(tool)}"
    head = json.dumps(json.dumps({"name": tool["function"]["name"]}) + "\n")
    if format.syntax == "regex":
        text = format.definition.replace("/", "\\/")
        return f"{rule}: {head} {rule}_text\n{rule}_text: /{text}/"
    return f"{rule}: {head} {rule}_text\n{rule}_text: %lark {{\n{format.definition}\n}}"


def _call_schema(tool: Tool) -> str:
    function = tool["function"]
    schema = {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": _bare(closed(function["parameters"])),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return _json(schema)


def _json(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, **_STYLE})


def _bare(schema: Any) -> Any:
    """Remove descriptive keywords such as `title` from a schema; keep properties named `title`."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _bare(part) for name, part in value.items()}
        if key in _MAPS and isinstance(value, dict)
        else value
        if key in ("const", "enum")
        else _bare(value)
        for key, value in schema.items()
        if key not in _ANNOTATIONS
    }
