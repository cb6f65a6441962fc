"""Exceptions that end a trace before the program ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sgl_mlx.compiler.graph.nodes import (
        Line,
    )


class _Located(Exception):
    reason: str
    line: Line | None = None

    def locate(self, line: Line) -> None:
        """Say where, unless something further in has said so."""
        self.line = self.line or line


class GraphBreak(_Located):
    """Raised where the next thing that the program does depends on a run.

    Attributes:
        reason: what depends on the run, in words that follow the line in an explanation.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NeedsLength(_Located):
    """The list argument is used in a way that depends on how long it is: trace for one length."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(argument, reason)
        self.argument = argument
        self.reason = reason


def needs_run(reason: str) -> NoReturn:
    """Raise `GraphBreak`."""
    raise GraphBreak(reason)


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call something without effects; what it raises is left to the run."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        needs_run(f"raises {type(error).__name__}: {error}")
