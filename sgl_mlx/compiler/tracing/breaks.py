"""Exceptions that end a trace before the program ends."""

from __future__ import annotations

import os
import site
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sgl_mlx.compiler.graph.nodes import (
        Line,
    )


class _Located(Exception):
    """An exception that collects the source lines it passed: one per function, innermost first."""

    _said: str

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self._lines: list[Line] = []

    def locate(self, line: Line) -> None:
        """Add a line, unless the last line added is of the same function."""
        last = self._lines[-1] if self._lines else None
        if last is None or (last.function, last.file) != (line.function, line.file):
            self._lines.append(line)

    @property
    def line(self) -> Line | None:
        """The innermost line of the user's own code, not of a library; None if no line is known."""
        own = (line for line in self._lines if not _is_library(line.file))
        return next(own, self._lines[-1] if self._lines else None)

    @property
    def reason(self) -> str:
        """Why the trace ended, with the name of the library function if it ended inside one."""
        line = self.line
        within = self._lines[: self._lines.index(line)] if line is not None else []
        return f"calls {within[-1].function}() of a library: {self._said}" if within else self._said


class GraphBreak(_Located):
    """The end of a trace: what the program does next depends on the run.

    Args:
        reason: what depends on the run, in words that follow the line in an explanation.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self._said = reason


class NeedsLength(_Located):
    """A use of a list argument that depends on its length.

    `trace` then traces the program again, for the one length that the list has.

    Args:
        argument: the name of the list argument.
        reason: how the program uses it, for an explanation.
    """

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(argument, reason)
        self.argument = argument
        self._said = reason


def needs_run(reason: str) -> NoReturn:
    """Raise `GraphBreak` with this reason."""
    raise GraphBreak(reason)


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that has no side effects, and return its result.

    Raises:
        GraphBreak: the function raised an exception; the run will raise that exception again.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        needs_run(f"raises {type(error).__name__}: {error}")


def _is_library(file: str) -> bool:
    """Tell whether a file belongs to Python's library, an installed package or this package."""
    return file.startswith(("<frozen ", *_library_folders()))


@cache
def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    folders.append(str(Path(__file__).parents[2]))
    both = {path for folder in folders for path in (Path(folder), Path(folder).resolve())}
    return tuple(f"{path}{os.sep}" for path in both)
