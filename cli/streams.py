"""Safe text input and output: arguments, files and standard streams.

Input that is not text, closed streams, broken pipes and encodings that lack a character are
reported in a message instead of a traceback.
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
    """Make the standard streams safe to use; call this once, before anything is read or opened.

    Output characters that the encoding lacks are written as escapes. Input bytes that are not text
    are kept as surrogates, which `read_line` reports. File descriptors 0 to 2 of closed streams
    are opened on the null device, so that printed text cannot end up in a file opened later.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream, errors="backslashreplace")
    is_ascii = codecs.lookup(getattr(sys.stdin, "encoding", None) or "utf-8").name == "ascii"
    # a C locale declares ASCII, but input is likely UTF-8
    _reconfigure(sys.stdin, errors="surrogateescape", **({"encoding": "utf-8"} if is_ascii else {}))


def _reconfigure(stream: Any, **how: str) -> None:
    if hasattr(stream, "reconfigure"):  # None when closed; notebooks replace the streams
        stream.reconfigure(**how)


def arguments(given: Iterable[str]) -> list[str]:
    """Return command line arguments as valid text; names of existing files are left unchanged.

    Raises:
        click.UsageError: an argument is neither valid UTF-8 nor the name of a file.
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
    """Read the text of a file, in UTF-8 or in UTF-16 with a byte order mark.

    Raises:
        click.BadParameter: the file cannot be read or decoded.
    """
    try:
        return decoded(Path(path).read_bytes())
    except OSError as error:
        raise click.BadParameter(f"cannot read {path!r}: {error.strerror}") from error
    except UnicodeError as error:
        raise click.BadParameter(f"{path!r} is not valid UTF-8: {error}") from error


def decoded(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark; the mark is dropped. Raises UnicodeError."""
    return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")


def is_terminal(stream: Any) -> bool:
    """Return True if a stream is a terminal; False if it is not, or is closed (None)."""
    return stream is not None and bool(stream.isatty())


def read_all() -> str:
    """Read all of standard input as text.

    Raises:
        PromptError: standard input is closed, or is not valid text.
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
    """Raise `PromptError` if standard input is closed."""
    if sys.stdin is None:
        raise PromptError("standard input is closed; give it a terminal, a pipe or a file")


def read_line(prompt: str) -> str:
    """Read a line of standard input, without the line end; `prompt` is printed before it.

    Raises:
        EOFError: the input has ended.
        PromptError: the line is not valid text.
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
    """Redirect standard output and standard error to the null device if they cannot be flushed.

    Without this, Python would try to flush them again when it exits, and fail.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
