"""Conversion of Anthropic's messages, tools and tool choice to OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from sgl_mlx.bounds import shown
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.messages import PLACE
from sgl_mlx.server.tools.calls import Tool, ToolChoice, function_tool

Block = dict[str, Any]

_BILLING = "x-anthropic-billing-header:"
"""Start of a system block of Claude Code, dropped because its text differs in each request.

With it, the prompts of a conversation would share no prefix.
"""

_SOURCES = {
    "image": "the type base64 and data",
    "document": "the type text and data (PDF files and stored files are not read)",
}
"""Sources that a block of each type may have."""


def messages_of(system: str | list[Any] | None, messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the messages of a request in OpenAI's shape, the system prompt first.

    Raises:
        HttpError: a message or content block is malformed; the error names the field.
    """
    made: list[dict[str, Any]] = []
    if said := _system_text(system):
        made.append({"role": "system", "content": said})
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        made += [{**one, PLACE: where} for one in _message(where, message)]
    return made


def tools_of(given: Sequence[Any]) -> list[Tool]:
    """Return the tools that clients run; tools that only Anthropic's servers run are left out."""
    return [_tool(i, tool) for i, tool in enumerate(given) if _is_own(tool)]


def choice_of(given: dict[str, Any] | None) -> ToolChoice | None:
    """Parse `tool_choice`; returns None if no tool may be called, raises `HttpError` if invalid."""
    if given is None:
        return ToolChoice()
    several = not given.get("disable_parallel_tool_use")
    match given:
        case {"type": "auto"}:
            return ToolChoice(several=several)
        case {"type": "none"}:
            return None
        case {"type": "any"}:
            return ToolChoice(needed=True, several=several)
        case {"type": "tool", "name": str() as name}:
            return ToolChoice(needed=True, names=(name,), several=several)
    raise bad_value(
        "tool_choice must have the type auto, any or none, or tool with a name, "
        f"got {shown(given)}",
        "tool_choice",
    )


def _system_text(system: str | list[Any] | None) -> str:
    blocks = system if isinstance(system, list) else [system]
    texts = (block.get("text") if isinstance(block, dict) else block for block in blocks)
    kept = (text for text in texts if isinstance(text, str) and not text.startswith(_BILLING))
    return "\n".join(kept)


def _message(where: str, message: Any) -> Iterator[dict[str, Any]]:
    """Convert one message; yield a message for each tool result, then one with all other blocks."""
    if not isinstance(message, dict):
        raise bad_value(f"{where} must be an object, got {shown(message)}", where)
    role, content = message.get("role"), message.get("content")
    if not isinstance(content, list):
        yield {"role": role, "content": content}
        return
    blocks = list(enumerate(content))
    made: dict[str, Any] = {"role": role, "content": []}
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for i, block in blocks:
        at = f"{where}.content[{i}]"
        match block:
            case {"type": "tool_result"}:
                yield _result(at, block)
            case {"type": "tool_use", "name": str(), "input": dict()}:
                calls.append(_call(block))
            case {"type": "thinking", "thinking": str() as thought}:
                thoughts.append(thought)
            case {"type": "redacted_thinking" | "server_tool_use"}:
                continue
            case {"type": str() as kind} if kind.endswith("_tool_result"):
                continue
            case _:
                made["content"].append(_part(at, block))
    if calls:
        made["tool_calls"] = calls
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    if made["content"] or calls or thoughts or not content:
        yield made


def _call(block: Block) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": block["input"]}
    return {"id": block.get("id"), "type": "function", "function": function}


def _result(where: str, block: Block) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        content = [_part(f"{where}.content[{i}]", part) for i, part in enumerate(content)]
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def _part(where: str, block: Any) -> Block:
    match block:
        case str() | {"type": "text", "text": str()}:
            return {"type": "text", "text": block if isinstance(block, str) else block["text"]}
        case {"type": "image", "source": {"type": "base64", "data": str() as data} as source}:
            kind = source.get("media_type", "image/png")
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": str() as url}}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "document", "source": {"type": "text", "data": str() as text}}:
            return {"type": "text", "text": text}
        case {"type": "search_result" | "tool_reference"}:
            return {"type": "text", "text": msgspec.json.encode(block).decode()}
    kind = block.get("type") if isinstance(block, dict) else block
    if isinstance(block, dict) and kind in _SOURCES:
        raise bad_value(
            f"{where}.source must have {_SOURCES[kind]}, got {shown(block.get('source'))}",
            f"{where}.source",
        )
    raise bad_value(
        f"{where} must be a complete block of text, an image or a document, got type {shown(kind)}",
        where,
    )


def _is_own(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") in (None, "custom")


def _tool(index: int, tool: Block) -> Tool:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise bad_value(f"tools[{index}].name must be a text, got {shown(name)}", "tools")
    return function_tool(name, tool.get("description"), tool.get("input_schema"))
