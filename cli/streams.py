"""The door of the command line: arguments, files and standard input become text, or say why not.

Standard streams may be closed, cut off, or of an encoding that lacks a character; none of that is
a traceback.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from sgl_mlx import bounds
from sgl_mlx.errors import PromptError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def prepare() -> None:
    """Make the standard streams safe to use; call it once, before anything is read or opened.

    Characters that an output lacks are written as escapes. Bytes of the input that are no text are
    kept, for `read_line` to tell. The numbers of closed streams are taken, so that no file that is
    opened later gets one, and with it what is printed.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream, errors="backslashreplace")
    is_ascii = codecs.lookup(getattr(sys.stdin, "encoding", None) or "utf-8").name == "ascii"
    # a C locale says ASCII and means nothing by it
    _reconfigure(sys.stdin, errors="surrogateescape", **({"encoding": "utf-8"} if is_ascii else {}))


def _reconfigure(stream: Any, **how: str) -> None:
    if hasattr(stream, "reconfigure"):  # None when closed; a double in a notebook may lack it
        stream.reconfigure(**how)


def arguments(given: Iterable[str]) -> list[str]:
    """Return the arguments of a command line as text; names of files stay as they are.

    Raises:
        click.UsageError: for one that is no UTF-8 and names no file.
    """
    return [_argument(i, text) for i, text in enumerate(given, 1)]


def _argument(number: int, given: str) -> str:
    fault = bounds.unreadable(given)
    if fault is None or os.path.lexists(given) or os.path.lexists(given.partition("=")[2]):
        return given
    try:
        return os.fsencode(given).decode()  # the locale is not UTF-8, the argument is
    except UnicodeError:
        raise click.UsageError(f"argument {number}, {given!r}, holds {fault}") from None


def read_file(path: str) -> str:
    """Read the text of a file: UTF-8, or UTF-16 with its mark.

    Raises:
        click.BadParameter: when it cannot be read.
    """
    try:
        return decoded(Path(path).read_bytes())
    except OSError as error:
        raise click.BadParameter(f"cannot read {path!r}: {error.strerror}") from error
    except UnicodeError as error:
        raise click.BadParameter(f"{path!r} is not valid UTF-8: {error}") from error


def decoded(data: bytes) -> str:
    """Decode text in UTF-8, or in UTF-16 with its mark; a mark is no part of the text."""
    return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")


def is_terminal(stream: Any) -> bool:
    """Return True for a terminal; False for anything else, a closed stream too."""
    return stream is not None and bool(stream.isatty())


def read_all() -> str:
    """Read all of standard input.

    Raises:
        PromptError: when it is closed, or no text.
    """
    check_input()
    data = sys.stdin.buffer.read()
    try:
        return decoded(data)
    except UnicodeError as error:
        if sys.stdin.encoding.lower().replace("-", "") != "utf8":
            return data.decode(sys.stdin.encoding)  # any byte is a character of Latin-1
        raise PromptError(f"the prompt is not valid UTF-8: {error}") from error


def check_input() -> None:
    """Raise `PromptError` when standard input is closed."""
    if sys.stdin is None:
        raise PromptError("standard input is closed; give it a terminal, a pipe or a file")


def read_line(prompt: str) -> str:
    """Read a line of standard input, without its end.

    Raises:
        EOFError: at the end of the input.
        PromptError: for a line that is no text.
    """
    # input() wants an output to write its prompt to
    line = input(prompt) if sys.stdout is not None else _line()
    line = line.removeprefix("\ufeff")
    if fault := bounds.unreadable(line):
        raise PromptError(f"this line was not sent: it holds {fault}")
    return line


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def abandon_output() -> None:
    """Let the exit not try again to write what could not be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
