"""Tools for models whose chat template knows none: explained, called and answered as plain text."""

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
    """Return a system message that explains tools, in Hermes' form."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return {"role": "system", "content": _LESSON.format(listed)}


def as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Write the calls of a message, or the result that it brings, into its text."""
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
