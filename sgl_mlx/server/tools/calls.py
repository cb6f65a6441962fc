"""Tools, tool calls, and a request's demands on tool calls."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.bounds import shown
from sgl_mlx.server.errors import bad_value

Tool = dict[str, Any]
"""A tool in the shape for chat templates: `{"type": "function", "function": {"name", …}}`."""


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True)
class Call:
    """A tool call that a model made: the tool's name, its arguments, and the call's id."""

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default_factory=new_call_id)

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class ToolChoice:
    """A request's demands on tool calls.

    Attributes:
        needed: True if the answer must be a tool call.
        names: the only tools that may be called; None allows every tool.
        several: True if the answer may hold more than one call.
    """

    needed: bool = False
    names: tuple[str, ...] | None = None
    several: bool = True

    def among(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        """Return the tools that may be called.

        Raises:
            HttpError: a call is needed and no tool may be called, or a name is no tool's.
        """
        own = [t["function"]["name"] for t in tools]
        found = [t for t in tools if self.names is None or t["function"]["name"] in self.names]
        missing = [name for name in self.names or () if name not in own]
        if missing or (self.needed and not found):
            known = ", ".join(own) or "none"
            asked = f"the tool {shown(missing[0])}" if missing else "a call of a tool"
            raise bad_value(
                f"tool_choice asks for {asked}, but the functions in tools are: {known}",
                "tool_choice",
            )
        return found


def checked_tools(given: Sequence[Any], where: str = "tools") -> list[Tool]:
    """Return a request's function tools in the shape for chat templates.

    Tools of other types, which only OpenAI's servers can run, are left out.

    Args:
        where: path of the request field, for errors.

    Raises:
        HttpError: a function has no name.
    """
    return [_tool(f"{where}[{i}]", tool) for i, tool in enumerate(given) if _is_function(tool)]


def function_tool(name: str, description: Any, parameters: Any) -> Tool:
    """Return a tool in the shape for chat templates; a tool has no parameters if they are empty."""
    given = isinstance(parameters, dict) and parameters
    schema = parameters if given else {"type": "object", "properties": {}}
    function = {"name": name, "description": description or "", "parameters": schema}
    return {"type": "function", "function": function}


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type", "function") == "function"


def _tool(where: str, tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise bad_value(f"{where}.function.name must be a text, got {shown(name)}", where)
    return function_tool(name, function.get("description"), function.get("parameters"))
