"""Any value of any option, and any argument, ends in an answer or in one message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from sgl_mlx.cli import main

PROGRAM = "@sgl.function\ndef main(s, x='a'):\n    s += x + sgl.gen('a', max_tokens=2)\n"
COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": ("generate", "Say hi."),
    "chat": ("chat",),
    "run": ("run", "PROGRAM"),
    "compile": ("compile", "PROGRAM"),
    "models info": ("models", "info", "nowhere"),
    "models list": ("models", "list"),
    "models kv": ("models", "kv"),
}
NOT_TRIED = {"--help", "--model"}
VALUES = [
    *("", " ", "-", "--", "-1", "0", "1", "2", "1.5", "1e300", "-1e300", "nan", "inf", "1e-400"),
    *("9" * 30, "0x10", "1_000", "\u0665", "true", "null", "None", "{", "[]", "{}", '{"a":', '"a"'),
    *(
        "é",
        "😀",
        "\ufeffa",
        "a\tb",
        "a\nb",
        "\x00",
        "\x1b[31m",
        "\udce9",
        "\ud83d",
        "a=b",
        "=",
        "a=",
    ),
    *(
        ".",
        "/",
        "~",
        "/nowhere/x",
        "/dev/null",
        "a,b",
        ",",
        ",,",
        "(",
        "[",
        "*",
        "\\",
        "(?=a)",
        "%s",
    ),
    *("x=NaN", "x=1e999", 'x={"a": [1]}', "x=\udce9", "x=" + "[" * 5000, "5GB", "-5GB", "1e3KB"),
    *("data:image/png;base64,!!", "http://127.0.0.1:1/x.png", "a" * 70_000),
]


def options_of(name: str) -> Iterator[str]:
    command: Any = main
    for part in name.split():
        command = command.commands[part]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not NOT_TRIED.intersection(parameter.opts):
            yield parameter.opts[0]


CASES = [(name, option) for name in COMMANDS for option in options_of(name)]


@pytest.mark.parametrize(("command", "option"), CASES)
def test_any_value_of_an_option_is_taken_or_told(
    sgl, use, program, tmp_path: Path, monkeypatch, command: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = program(PROGRAM)
    words = [path if word == "PROGRAM" else word for word in COMMANDS[command]]
    for value in (v for v in VALUES if "\0" not in v):  # no command line can hold it
        use()
        check(sgl(*words, option, value, stdin="Hi\n/exit\n"), value)


@pytest.mark.parametrize("command", ["generate", "run", "compile", "models info", "models list"])
def test_any_argument_is_taken_or_told(sgl, use, tmp_path: Path, monkeypatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (v for v in VALUES if "\0" not in v):
        use()
        check(sgl(*command.split(), value, stdin="Hi"), value)


@pytest.mark.parametrize("value", VALUES)
def test_any_line_of_a_conversation_is_answered_or_told(sgl, use, value: str) -> None:
    use()
    line = value.encode("utf-8", "surrogateescape" if "\udce9" in value else "surrogatepass")
    for said in (line, b"/" + line, b"/image " + line, b"/set " + line, b"/system " + line):
        check(sgl("chat", stdin=said + b"\n/exit\n"), value)


def check(result: Any, value: str) -> None:
    """Fail for an exception that is neither an exit nor a message of ours."""
    error = result.exception
    assert error is None or isinstance(error, SystemExit), (value[:60], repr(error))
    assert result.exit_code in (0, 1, 2), (value[:60], result.exit_code)
    if result.exit_code:
        assert "Error" in result.stderr, (value[:60], result.stderr)
        assert len(result.stderr) < 3000, value[:60]
