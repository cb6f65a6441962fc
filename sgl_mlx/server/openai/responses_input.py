"""Conversion of the Responses API's input items and tools to OpenAI's chat shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx import bounds
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.messages import PLACE
from sgl_mlx.server.tools.calls import Call, Tool, checked_tools, function_tool
from sgl_mlx.server.tools.grammar import Format

Item = dict[str, Any]

_FREE_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""Parameters shown to the model for a custom tool: its free text is the argument `input`."""


@dataclass(frozen=True)
class Origin:
    """A tool's identity in the request, which may differ from the name shown to the model.

    Attributes:
        name: name of the tool in the request.
        namespace: namespace of the tool in the request; None if it is in none.
        free: True if the tool takes free text instead of a JSON object.
    """

    name: str
    namespace: str | None = None
    free: bool = False


class Toolbox:
    """The tools of a request, and the mapping between their names and the names the model sees.

    Tools of types that only OpenAI's servers can run are left out.

    Attributes:
        tools: the tools in the shape for chat templates.
        formats: the grammars of custom tools, by the names that the model sees.

    Raises:
        HttpError: a function or a custom tool has no name.
    """

    def __init__(self, given: Sequence[Any]) -> None:
        self.tools: list[Tool] = []
        self.formats: dict[str, Format] = {}
        self._origins: dict[str, Origin] = {}
        for i, tool in enumerate(given):
            self._add(f"tools[{i}]", tool, None)

    def item(self, call: Call, id: str, status: str) -> Item:
        """Return a call's output item, with the tool's name and namespace as in the request."""
        origin = self._origins.get(call.name, Origin(call.name))
        item: Item = {"id": id, "call_id": call.id, "name": origin.name, "status": status}
        if origin.namespace is not None:
            item["namespace"] = origin.namespace
        if origin.free:
            return {"type": "custom_tool_call", **item, "input": str(call.arguments.get("input"))}
        return {"type": "function_call", **item, "arguments": call.arguments_json}

    def shown_name(self, name: str, namespace: str | None) -> str:
        """Return the name that the model sees for a tool; `name` itself for an unknown tool."""
        for shown, origin in self._origins.items():
            if (origin.name, origin.namespace) == (name, namespace):
                return shown
        return name

    def _add(self, where: str, tool: Any, namespace: str | None) -> None:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "namespace":
            inner = tool.get("tools")
            for i, one in enumerate(inner if isinstance(inner, list) else ()):
                self._add(f"{where}.tools[{i}]", one, str(tool.get("name")))
        elif kind == "custom":
            described = f"{tool.get('description') or ''}{_format(tool.get('format'))}"
            name = tool.get("name")
            if not isinstance(name, str) or not name:
                raise bad_value(f"{where}.name must be a text, got {bounds.shown(name)}", where)
            made = function_tool(name, described, _FREE_INPUT)
            shown = self._register(made, namespace, True)
            match tool.get("format"):
                case {"syntax": "lark" | "regex" as syntax, "definition": str() as definition}:
                    self.formats[shown] = Format(syntax, definition)
        elif kind == "function":
            for made in checked_tools([tool], where):
                self._register(made, namespace, False)

    def _register(self, tool: Tool, namespace: str | None, free: bool) -> str:
        """Add a tool; return the name that the model sees for it."""
        name = tool["function"]["name"]
        shown = f"{namespace}.{name}" if namespace and name in self._origins else name
        self._origins[shown] = Origin(name, namespace, free)
        self.tools.append({**tool, "function": {**tool["function"], "name": shown}})
        return shown


def messages_of(
    given: str | Sequence[Any], instructions: str | None, toolbox: Toolbox
) -> list[dict[str, Any]]:
    """Return the input items as messages in OpenAI's chat shape, `instructions` first.

    Items of unknown types are skipped.

    Raises:
        HttpError: there are no items, or an item is not a JSON object.
    """
    made: list[dict[str, Any]] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not items:
        raise bad_value("input is empty; send a text or at least one message", "input")
    thought = None
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise bad_value(
                f"input[{i}] must be an object, got {bounds.shown(item)}", f"input[{i}]"
            )
        match item.get("type", "message"):
            case "message":
                said = {"role": item.get("role"), "content": item.get("content")}
                made.append({**said, PLACE: f"input[{i}]"})
            case "function_call" | "custom_tool_call":
                _said(made)["tool_calls"] = [
                    *_said(made).get("tool_calls", ()),
                    _call(item, toolbox),
                ]
            case "function_call_output" | "custom_tool_call_output":
                made.append({**_output(item), PLACE: f"input[{i}]"})
            case "reasoning":
                thought = _thought(item)
                continue
            case _:
                continue
        if thought and made[-1]["role"] == "assistant":
            made[-1]["reasoning_content"] = thought
        thought = None
    return made


def _said(made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last message if it is the assistant's; else append an empty assistant message."""
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant", "content": None})
    return made[-1]


def _call(item: Item, toolbox: Toolbox) -> dict[str, Any]:
    name = toolbox.shown_name(str(item.get("name")), item.get("namespace"))
    free = item.get("type") == "custom_tool_call"
    arguments = {"input": item.get("input")} if free else item.get("arguments")
    function = {"name": name, "arguments": arguments}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _output(item: Item) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}


def _thought(item: Item) -> str:
    parts = item.get("content")
    texts = (
        p.get("text") for p in (parts if isinstance(parts, list) else ()) if isinstance(p, dict)
    )
    return "".join(text for text in texts if isinstance(text, str))


def _format(given: Any) -> str:
    """Return a sentence with the grammar of a custom tool's input; "" if it has no grammar."""
    if not isinstance(given, dict) or not given.get("definition"):
        return ""
    return f"\nThe input follows this {given.get('syntax')} grammar:\n{given['definition']}"
