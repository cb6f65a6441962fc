"""Checks of single values where they enter: the type, the range, and numpy's scalars."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from sgl_mlx.errors import InvalidParamsError

Rule = Callable[[str, Any], Any]
"""Takes a parameter's name and value; returns the value as the runtime reads it.

Raises `InvalidParamsError` naming parameter, value and what would be right.
"""

INT32 = 2**31 - 1
INT64 = 2**63 - 1
_LONGEST_PATTERN = 10_000


def integer(low: int, high: int, also: int | None = None) -> Rule:
    """Return the rule of integers from `low` to `high`, and perhaps one `also`."""
    wanted = f"an integer from {low} to {high}" + ("" if also is None else f", or {also}")

    def rule(name: str, value: Any) -> int:
        number = _index(value)
        if number is None or not (low <= number <= high or number == also):
            refuse(name, value, wanted)
        return number

    return rule


def number(low: float, high: float, above: bool = False) -> Rule:
    """Return the rule of numbers from `low`, or only `above` it, to `high`."""
    wanted = f"a number in {'(' if above else '['}{low:g}, {high:g}]"

    def rule(name: str, value: Any) -> float:
        found = _float(value)
        if found is None or not low <= found <= high or (above and found == low):
            refuse(name, value, wanted)
        return found

    return rule


def flag(name: str, value: Any) -> bool:
    """Check a truth value; 0 and 1 are taken."""
    if isinstance(value, bool):
        return value
    if value is None or isinstance(value, (str, bytes, float)) or hasattr(value, "__len__"):
        refuse(name, value, "True or False")
    try:
        known = bool(value == 0 or value == 1)
    except Exception:  # of a class of the caller's own
        known = False
    return bool(value) if known else refuse(name, value, "True or False")


def optional(rule: Rule) -> Rule:
    """Return a rule that takes None as well."""
    return lambda name, value: None if value is None else rule(name, value)


def text(name: str, value: Any) -> str:
    """Check a text, which must not hold lone surrogates."""
    if not isinstance(value, str):
        refuse(name, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(name, value, "a text without lone surrogates")
    return str(value)


def filled_text(name: str, value: Any) -> str:
    """Check a text that must not be empty."""
    return text(name, value) or refuse(name, value, "a text that is not empty")


def items(rule: Rule) -> Rule:
    """Return the rule of lists and tuples whose items follow a rule."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (tuple, list)):
            refuse(name, value, "a list")
        return tuple(rule(name, item) for item in value)

    return check


def pattern(name: str, value: Any) -> str:
    """Check a regular expression of Python's."""
    found = filled_text(name, value)
    if len(found) > _LONGEST_PATTERN:
        refuse(name, found, f"a pattern of at most {_LONGEST_PATTERN} characters")
    try:
        re.compile(found)
    except re.error as error:
        message = f"{name} {found[:80]!r} at position {error.pos}: {error.msg}"
        raise InvalidParamsError(message) from error
    except (OverflowError, RecursionError, MemoryError) as error:
        raise InvalidParamsError(f"{name} {found[:80]!r}: {error}") from error
    return found


def biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Check pairs of a token id and what is added to its logit."""
    if not isinstance(value, (tuple, list)):
        refuse(name, value, "pairs of a token id and a number")
    return tuple(_bias(name, pair) for pair in value)


def _bias(name: str, pair: Any) -> tuple[int, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        refuse(name, pair, "pairs of a token id and a number")
    token, bias = _index(pair[0]), _float(pair[1])
    if token is None or not 0 <= token <= INT32 or bias is None or abs(bias) > 1e30:
        raise InvalidParamsError(
            f"{name} adds a finite number, at most 1e30, to a token id of at least 0, got "
            f"{_short(pair[1])} for {_short(pair[0])}"
        )
    return token, bias


def refuse(name: str, value: Any, wanted: str) -> NoReturn:
    """Raise `InvalidParamsError` for a value that is not what is `wanted`."""
    raise InvalidParamsError(f"{name} must be {wanted}, got {_short(value)}")


def only(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidParamsError(
            f"unknown sampling parameter {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(sorted(known))}"
        )


def _index(value: Any) -> int | None:
    """Return an integer of Python's or numpy's; None for anything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or hasattr(value, "__len__"):
        return None
    try:
        return int(value.__index__())
    except (TypeError, ValueError):  # an array
        return None


def _float(value: Any) -> float | None:
    """Return a finite number of Python's or numpy's; None for anything else."""
    is_bool = isinstance(value, bool) or type(value).__name__.startswith("bool")
    if is_bool or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _short(value: Any) -> str:
    told = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
    return told if len(told) <= 80 else f"{told[:77]}..."
