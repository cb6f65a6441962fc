"""Error messages for unknown names, with the names that were probably meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

from sgl_mlx.errors import InvalidParamsError, ProgramError

P = ParamSpec("P")
R = TypeVar("R")


def unknown(kind: str, names: Iterable[object], known: Iterable[str]) -> str:
    """Return an error message: the unknown names, similar known names, and all known names."""
    given, listed = sorted(map(str, names)), sorted(known)
    guess = meant(given, listed) or ";"
    return f"unknown {kind} {', '.join(map(repr, given))}{guess} known are {', '.join(listed)}"


def meant(names: Iterable[str], known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with known names similar to `names`; "" if there are none."""
    listed = list(known)
    guesses = {guess: None for name in names if (guess := closest(name, listed))}
    return f"; did you mean {' and '.join(map(repr, guesses))}?" if guesses else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`; None if `name` is known or none is similar."""
    from difflib import get_close_matches  # slow to import, and only errors need it

    folded = {_folded(other): other for other in known}
    found = get_close_matches(_folded(name), folded, n=1)
    guess = folded[found[0]] if found else name
    return None if guess == name else guess


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def only(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Check that all names are known.

    Raises:
        InvalidParamsError: some names are unknown. `unknown` writes the message.
    """
    known = set(known)
    if wrong := [name for name in names if name not in known]:
        raise InvalidParamsError(unknown(kind, wrong, known))


def explains_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: an unknown keyword argument raises `ProgramError`, not `TypeError`.

    `unknown` writes the message, with similar keywords and all known keywords.
    """
    takes = inspect.signature(function).parameters

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if wrong := kwargs.keys() - takes.keys():
            raise ProgramError(unknown(f"keyword of {function.__name__}()", wrong, takes))
        return function(*args, **kwargs)

    return checked
