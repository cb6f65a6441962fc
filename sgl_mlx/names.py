"""Names that are not known: what was meant, and what is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

from sgl_mlx.errors import InvalidParamsError, ProgramError

P = ParamSpec("P")
R = TypeVar("R")


def unknown(kind: str, names: Iterable[object], known: Iterable[str]) -> str:
    """Say which names are not known, the likeliest that was meant, and all that are known."""
    given, listed = sorted(map(str, names)), sorted(known)
    guess = meant(given, listed) or ";"
    return f"unknown {kind} {', '.join(map(repr, given))}{guess} known are {', '.join(listed)}"


def meant(names: Iterable[str], known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for names that are much like known ones; else nothing."""
    listed = list(known)
    guesses = {guess: None for name in names if (guess := closest(name, listed))}
    return f"; did you mean {' and '.join(map(repr, guesses))}?" if guesses else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another; None if it is known, or none is alike."""
    from difflib import get_close_matches  # costs as much as the language, and only errors need it

    folded = {_folded(other): other for other in known}
    found = get_close_matches(_folded(name), folded, n=1)
    guess = folded[found[0]] if found else name
    return None if guess == name else guess


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def only(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Refuse names that are not known.

    Raises:
        InvalidParamsError: naming them, what was probably meant and what is known.
    """
    known = set(known)
    if wrong := [name for name in names if name not in known]:
        raise InvalidParamsError(unknown(kind, wrong, known))


def explains_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse keywords that it does not take as `unknown` says it.

    The function then raises `ProgramError` where Python's own error would name the keyword alone.
    """
    takes = inspect.signature(function).parameters

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if wrong := kwargs.keys() - takes.keys():
            raise ProgramError(unknown(f"keyword of {function.__name__}()", wrong, takes))
        return function(*args, **kwargs)

    return checked
