"""Formats of tool calls by model family, recognised by tags in the model's chat template.

Parsers come from `mlx_lm.tool_parsers` if that module has the format, else from `own_parsers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.server.tools import own_parsers
from sgl_mlx.server.tools.calls import Call, Tool, new_call_id

Parse = Callable[[str, Sequence[Tool]], Any]


@dataclass(frozen=True)
class Family:
    """The format of tool calls in a model family.

    Attributes:
        name: name of the format.
        starts: tags that begin a tool call.
        end: tag that ends a tool call; empty if the call runs to the end of the answer.
        parse: parser of the text between the tags; raises on text that is not a call.
        bare: True if an answer that begins with `{` is a tool call without tags.
    """

    name: str
    starts: tuple[str, ...]
    end: str
    parse: Parse
    bare: bool = False

    def calls(self, text: str, tools: Sequence[Tool]) -> list[Call]:
        """Return the tool calls in the text between two tags; empty if the text is malformed."""
        try:
            found = self.parse(text, tools)
            return [_call(one) for one in (found if isinstance(found, list) else [found])]
        except Exception:  # parsers raise whatever broken text leads to
            return []


def _call(found: Any) -> Call:
    name, arguments = found["name"], found.get("arguments", {})
    if isinstance(arguments, str):
        arguments = own_parsers.json_object(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call needs a name and an object of arguments")
    return Call(name, arguments, str(found.get("id") or new_call_id()))


def _of_mlx_lm(name: str) -> Callable[[], Family]:
    def load() -> Family:
        # deferred: this imports mlx-lm, which is loaded anyway once a model is served
        module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")

        def parse(text: str, tools: Sequence[Tool]) -> Any:
            return module.parse_tool_call(text, list(tools))

        return Family(name, (module.tool_call_start,), module.tool_call_end, parse)

    return load


def _own(name: str, starts: tuple[str, ...], end: str, parse: Parse, bare: bool = False) -> Any:
    return lambda: Family(name, starts, end, parse, bare)


_DSML = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")

_BY_TEMPLATE: tuple[tuple[tuple[str, ...], Callable[[], Family]], ...] = (
    ((_DSML[0],), _own("dsml", _DSML[:1], "</｜DSML｜function_calls>", own_parsers.dsml)),
    ((_DSML[1],), _own("dsml", _DSML[1:], "</｜DSML｜tool_calls>", own_parsers.dsml)),
    (
        ("<｜tool▁calls▁begin｜>",),
        _own("deepseek", ("<｜tool▁calls▁begin｜>",), "<｜tool▁calls▁end｜>", own_parsers.deepseek),
    ),
    (("<minimax:tool_call>",), _of_mlx_lm("minimax_m2")),
    (("<|tool_call>", "<tool_call|>"), _of_mlx_lm("gemma4")),
    (("<start_function_call>",), _of_mlx_lm("function_gemma")),
    (("<longcat_tool_call>",), _of_mlx_lm("longcat")),
    (("<arg_key>",), _of_mlx_lm("glm47")),
    (("<|tool_call_start|>",), _of_mlx_lm("pythonic")),
    (("<|tool_list_start|>",), _of_mlx_lm("pythonic")),
    (("<tool_call>", "<function="), _of_mlx_lm("qwen3_coder")),
    (("<|tool_calls_section_begin|>",), _of_mlx_lm("kimi_k2")),
    (('<function name="', '<param name="'), _of_mlx_lm("minicpm5")),
    (("[TOOL_CALLS]",), _of_mlx_lm("mistral")),
    (("<atem:function_calls>",), _of_mlx_lm("muse_spark")),
    (("<|/tool_call|>",), _own("phi", ("<|tool_call|>",), "<|/tool_call|>", own_parsers.json_list)),
    (("<|tool_call|>",), _own("granite", ("<|tool_call|>",), "", own_parsers.json_list)),
    (
        ("tools", "ipython"),
        _own("llama3", ("<|python_tag|>",), "", own_parsers.bare_json, bare=True),
    ),
)


def hermes() -> Family:
    """Return the Hermes format: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""
    return Family("hermes", ("<tool_call>",), "</tool_call>", own_parsers.one_json)


def family_of(chat_template: str | None) -> Family:
    """Return the tool call format whose tags are in a chat template; Hermes if none is known."""
    for marks, family in _BY_TEMPLATE:
        if chat_template is not None and all(mark in chat_template for mark in marks):
            return family()
    return hermes()


def teaches_tools(chat_template: str | None) -> bool:
    """Return True if a chat template contains "tools", so that it shows tools to the model."""
    return chat_template is not None and "tools" in chat_template
