"""Parsers of tool call formats that mlx-lm does not parse; each raises on malformed text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from sgl_mlx.server.tools.calls import Tool

Found = dict[str, Any]

_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?P<head>.*?)<｜tool▁sep｜>(?P<body>.*?)<｜tool▁call▁end｜>", re.DOTALL
)
_FENCED = re.compile(r"(?P<name>[^\n]+)\n```json\n(?P<json>.*)\n```\s*", re.DOTALL)
_INVOKE = re.compile(r'<｜DSML｜invoke name="(.*?)">(.*?)</｜DSML｜invoke>', re.DOTALL)
_PARAMETER = re.compile(
    r'<｜DSML｜parameter name="(.*?)"(?: string="(true|false)")?>(.*?)</｜DSML｜parameter>',
    re.DOTALL,
)


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; empty text is an empty object. Raises ValueError on anything else."""
    found = json.loads(text or "{}")
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object: {text[:80]}")
    return found


def one_json(text: str, _: Sequence[Tool]) -> Found:
    """Parse one call `{"name": …, "arguments": …}`, the Hermes format.

    If `{"name": …}` stands on a line without arguments, the lines after it are the argument
    `input`: the free text that `grammar.forced_call` lets a tool take.
    """
    head, line, rest = text.strip().partition("\n")
    if line and head.endswith("}") and "arguments" not in (found := json_object(head)):
        return _named({**found, "arguments": {"input": rest}})
    return _named(json_object(text))


def json_list(text: str, _: Sequence[Tool]) -> list[Found]:
    """Parse a JSON list of calls, or one call alone: the format of Granite 3 and Phi-4-mini."""
    found = json.loads(text)
    return [_named(call) for call in (found if isinstance(found, list) else [found])]


def bare_json(text: str, _: Sequence[Tool]) -> list[Found]:
    """Parse JSON calls without tags, one after another, the format of Llama 3."""
    decoder = json.JSONDecoder()
    rest = text.strip().removeprefix("<|python_tag|>").strip()
    calls = []
    while rest:
        found, end = decoder.raw_decode(rest)
        calls.append(_named(found))
        rest = rest[end:].lstrip("; \n")
    return calls


def deepseek(text: str, _: Sequence[Tool]) -> list[Found]:
    """Parse the format of DeepSeek V3.1, or of V3, which fences the arguments as a code block."""
    calls = []
    for found in _DEEPSEEK.finditer(text):
        fenced = _FENCED.fullmatch(found["body"])
        name, body = (fenced["name"], fenced["json"]) if fenced else (found["head"], found["body"])
        calls.append({"name": name.strip(), "arguments": json_object(body)})
    if not calls:
        raise ValueError("no call")
    return calls


def dsml(text: str, _: Sequence[Tool]) -> list[Found]:
    """Parse the format of DeepSeek V3.2 and V4; a parameter marked `string="false"` is JSON."""
    calls = [
        {
            "name": name,
            "arguments": {
                key: json.loads(value) if string == "false" else value
                for key, string, value in _PARAMETER.findall(body)
            },
        }
        for name, body in _INVOKE.findall(text)
    ]
    if not calls:
        raise ValueError("no call")
    return calls


def _named(call: Any) -> Found:
    """Return a call from its JSON object, which has `arguments` or `parameters`."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("a call needs a name")
    arguments = call.get("arguments", call.get("parameters", {}))
    return {"name": call["name"], "arguments": arguments, "id": call.get("id")}
