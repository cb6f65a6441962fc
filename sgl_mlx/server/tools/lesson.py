"""Tools as plain text, for models whose chat template does not support tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sgl_mlx.server.tools.calls import Tool

_LESSON = """You may call functions to help with the user's query. Their signatures are:
<tools>
{}
</tools>
For each call, write a JSON object with the function's name and arguments:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


def lesson(tools: Sequence[Tool]) -> dict[str, Any]:
    """Return a system message that lists the tools and explains the Hermes format of calls."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return {"role": "system", "content": _LESSON.format(listed)}


def as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose tool calls are written into its text.

    A message with the role "tool" becomes a user message that holds the result.
    """
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    written = [_written(call["function"]) for call in calls]
    said = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join([*said, *written])}


def _written(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
