"""Calls of tools, the tools themselves, and which of them an answer must call."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.server.errors import bad_value

Tool = dict[str, Any]
"""A tool as chat templates take it: `{"type": "function", "function": {"name", …}}`."""


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True)
class Call:
    """A call that a model made."""

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default_factory=new_call_id)

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class ToolChoice:
    """Demands that a request makes about calls.

    Attributes:
        needed: there must be a call.
        name: of the tool that must be called, if `needed`; None leaves the choice.
        several: more than one call may be made.
    """

    needed: bool = False
    name: str | None = None
    several: bool = True

    def among(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        """Return the tools that may be called; raises `HttpError` if none is left."""
        found = [t for t in tools if self.name in (None, t["function"]["name"])]
        if self.needed and not found:
            asked = f"the tool {self.name!r}" if self.name else "a call"
            raise bad_value(
                f"tool_choice asks for {asked}, which is not among tools", "tool_choice"
            )
        return found


def checked_tools(given: Sequence[Any], where: str = "tools") -> list[Tool]:
    """Return function tools in one shape; others, which servers run themselves, are left out.

    Raises:
        HttpError: a function has no name.
    """
    return [_tool(f"{where}[{i}]", tool) for i, tool in enumerate(given) if _is_function(tool)]


def function_tool(name: str, description: Any, parameters: Any) -> Tool:
    """Return a tool as chat templates take it."""
    schema = parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}}
    function = {"name": name, "description": description or "", "parameters": schema}
    return {"type": "function", "function": function}


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type", "function") == "function"


def _tool(where: str, tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise bad_value(f"{where}.function.name must be a text, got {name!r:.80}", where)
    return function_tool(name, function.get("description"), function.get("parameters"))
