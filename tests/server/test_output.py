"""Answers taken apart: the same parts for every way in which the text comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.server.output import Form, OutputParser, Piece
from sgl_mlx.server.tools.calls import function_tool
from sgl_mlx.server.tools.families import family_of, hermes

TOOLS = [
    function_tool(
        "weather",
        "",
        {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    )
]
THINK = ("<think>", "</think>")

TEMPLATES: dict[str, tuple[str, str]] = {
    "hermes": ("", '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'),
    "qwen3_coder": (
        "<tool_call>\n<function=",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    ),
    "llama3": ("tools ipython", '{"name": "weather", "parameters": %s}'),
    "pythonic": (
        "<|tool_call_start|>",
        '<|tool_call_start|>[weather(city="Rome", days=3)]<|tool_call_end|>',
    ),
    "mistral": ("[TOOL_CALLS]", "[TOOL_CALLS]weather[ARGS]%s"),
    "glm47": (
        "<arg_key>",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value>"
        "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>",
    ),
    "deepseek": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek v3": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n%s\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "dsml": (
        "<｜DSML｜function_calls>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        "<|tool_call_argument_begin|>%s<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "gemma4": (
        "<|tool_call> <tool_call|>",
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>,days:3}<tool_call|>',
    ),
    "minimax_m2": (
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    "granite": ("<|tool_call|>", '<|tool_call|>[{"name": "weather", "arguments": %s}]'),
    "phi": (
        "<|tool_call|> <|/tool_call|>",
        '<|tool_call|>[{"name": "weather", "arguments": %s}]<|/tool_call|>',
    ),
}
ARGUMENTS = {"city": "Rome", "days": 3}


def written(form: str) -> str:
    return form.replace("%s", json.dumps(ARGUMENTS))


def taken_apart(form: Form, pieces: list[str], cut: bool = False) -> list[tuple[str, Any]]:
    """The parts of an answer; texts of the same kind that follow each other are one."""
    parser = OutputParser(form)
    found = [part for piece in pieces for part in parser.add(piece)] + parser.finish(cut)
    parts: list[tuple[str, Any]] = []
    for part in found:
        if part.call is not None:
            parts.append((part.kind, (part.call.name, part.call.arguments)))
        elif parts and parts[-1][0] == part.kind:
            parts[-1] = (part.kind, parts[-1][1] + part.text)
        else:
            parts.append((part.kind, part.text))
    return parts


def chunks(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_family_is_found_by_its_template_and_read(name: str) -> None:
    template, form = TEMPLATES[name]
    family = family_of(template)
    assert family.name == name.split(" ")[0]
    text = written(form) if family.bare else f"Let me look.\n\n{written(form)}"
    *before, (kind, call) = taken_apart(Form(family=family, tools=TOOLS), [text])
    assert before == ([] if family.bare else [("text", "Let me look.")])
    assert (kind, call) == ("call", ("weather", ARGUMENTS))


@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    parts=st.lists(st.sampled_from(["call", "Hi <", " <tool", "\n\n", "a b", "[", "{", "<think>"])),
    thinks=st.booleans(),
    cut=st.booleans(),
    sizes=st.lists(st.integers(0, 9), max_size=40),
)
def test_parts_depend_on_the_text_alone(
    name: str, parts: list[str], thinks: bool, cut: bool, sizes: list[int]
) -> None:
    template, form = TEMPLATES[name]
    text = "".join(written(form) if part == "call" else part for part in parts)
    text = f"hm\n</think>\n{text}" if thinks else text
    shape = Form(THINK, thinks, family_of(template), TOOLS)
    whole = taken_apart(shape, [text], cut)
    assert taken_apart(shape, chunks(text, sizes), cut) == whole
    assert taken_apart(shape, list(text), cut) == whole


@given(text=st.text("<think/>tol_ca \n{}ab", max_size=40), sizes=st.lists(st.integers(0, 5)))
def test_text_without_calls_is_never_lost(text: str, sizes: list[int]) -> None:
    shape = Form(None, False, hermes(), TOOLS)
    parts = taken_apart(shape, chunks(text, sizes))
    assert parts == ([("text", text)] if text else [])


@pytest.mark.parametrize(
    ("text", "first", "parts"),
    [
        ("<think>\nhm\n</think>\n\nYes", False, [("reasoning", "hm"), ("text", "Yes")]),
        ("hm</think>Yes", True, [("reasoning", "hm"), ("text", "Yes")]),
        ("Yes", False, [("text", "Yes")]),
        (" Yes", False, [("text", " Yes")]),
        ("never ends", True, [("reasoning", "never ends")]),
        ("a <think>b</think>", False, [("text", "a <think>b</think>")]),
    ],
)
def test_thoughts_come_before_the_text(
    text: str, first: bool, parts: list[tuple[str, str]]
) -> None:
    assert taken_apart(Form(THINK, first), [text]) == parts


def test_thoughts_then_text_then_calls() -> None:
    call = written(TEMPLATES["hermes"][1])
    text = f"<think>\nfirst\n</think>\n\nOne moment.\n{call}\n{call}"
    kinds = [kind for kind, _ in taken_apart(Form(THINK, False, hermes(), TOOLS), [text])]
    assert kinds == ["reasoning", "text", "call", "call"]
    one = Form(THINK, False, hermes(), TOOLS, several=False)
    assert [kind for kind, _ in taken_apart(one, [text])] == ["reasoning", "text", "call"]


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n != "llama3"])
def test_a_call_that_is_cut_off_stays_text(name: str) -> None:
    template, form = TEMPLATES[name]
    text = "Look: " + written(form)[: len(written(form)) * 2 // 3]
    parts = taken_apart(Form(family=family_of(template), tools=TOOLS), [text], cut=True)
    assert [kind for kind, _ in parts] == ["text"]
    assert "".join(part for _, part in parts).replace(" ", "") == text.replace(" ", "")


def test_broken_calls_stay_text() -> None:
    text = '<tool_call>{"name": 5}</tool_call> and on'
    assert taken_apart(Form(family=hermes()), [text]) == [("text", text)]


def test_an_unclosed_call_at_a_regular_end_counts() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {}}'
    assert taken_apart(Form(family=hermes()), [text]) == [("call", ("weather", {}))]


def test_an_answer_without_form_is_text_at_once() -> None:
    assert OutputParser(Form()).add(" <tool_call>") == [Piece("text", " <tool_call>")]
