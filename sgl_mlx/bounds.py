"""Checks of parameters that callers pass in. A right value is returned as a plain Python type.

Numpy's scalars, arrays of any library and subclasses of `str` are converted. A wrong value raises
an error that names the parameter, its value, and what would be right.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sgl_mlx.errors import InvalidParamsError, LimitError, SglError

_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}

Rule = Callable[[str, Any], Any]
"""A check of one parameter: takes its name and value, and returns the value as a Python type.

Raises `InvalidParamsError`, which names the parameter, its value and what would be right.
"""

INT32 = 2**31 - 1
INT64 = 2**63 - 1


def integer(low: int, high: int, also: int | None = None) -> Rule:
    """Return a rule that accepts integers from `low` to `high`, and also the value `also`."""
    between = (
        "a positive integer" if (low, high) == (1, INT64) else f"an integer from {low} to {high}"
    )
    wanted = between + ("" if also is None else f", or {also}")

    def rule(name: str, value: Any) -> int:
        number = whole(value)
        if number is None or not (low <= number <= high or number == also):
            refuse(name, value, wanted)
        return number

    return rule


def number(low: float, high: float, above: bool = False) -> Rule:
    """Return a rule that accepts numbers from `low` to `high`; `above` excludes `low` itself."""
    wanted = f"a number in {'(' if above else '['}{low:g}, {high:g}]"

    def rule(name: str, value: Any) -> float:
        found = real(value)
        if found is None or not low <= found <= high or (above and found == low):
            refuse(name, value, wanted)
        return found

    return rule


def seconds(name: str, value: Any) -> float:
    """Return a positive number of seconds as a float; other values raise `InvalidParamsError`."""
    found = real(value)
    if found is None or found <= 0:
        refuse(name, value, "a positive number of seconds")
    return found


def flag(name: str, value: Any) -> bool:
    """Return a boolean, 0 or 1 as a `bool`; any other value raises `InvalidParamsError`."""
    if isinstance(value, bool):
        return value
    if value is None or isinstance(value, (str, bytes, float)) or hasattr(value, "__len__"):
        refuse(name, value, "True or False")
    try:
        known = bool(value == 0 or value == 1)
    except Exception:  # raised by `==` of a class of the caller
        known = False
    return bool(value) if known else refuse(name, value, "True or False")


def switch(name: str, value: Any) -> bool:
    """Return a `bool` as `flag` does; None gives False."""
    return value is not None and flag(name, value)


def optional(rule: Rule) -> Rule:
    """Return a rule that accepts None and all values that `rule` accepts."""
    return lambda name, value: None if value is None else rule(name, value)


def text(name: str, value: Any, error: type[SglError] = InvalidParamsError) -> str:
    """Return a text as a plain `str`; raises `error` for other types and for invalid Unicode."""
    if not isinstance(value, str):
        is_bytes = isinstance(value, (bytes, bytearray, memoryview))
        hint = " (decode bytes first: value.decode())" if is_bytes else ""
        refuse(name, value, "a text" + hint, error)
    if fault := unreadable(value):
        raise error(f"{name} holds {fault}, got {shown(value)}")
    return str.__str__(value)  # str(value) of a text Enum would give its name


def unreadable(text: str) -> str | None:
    """Describe the first character that UTF-8 cannot encode, for an error message.

    Returns:
        The description; None if UTF-8 can encode the whole text.
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # Python's surrogates for bytes it could not decode
            return f"the byte 0x{code - 0xDC00:02X} at position {error.start}, not valid UTF-8"
        half = f"half a character (the lone surrogate U+{code:04X})"
        return f"{half} at position {error.start}, which UTF-8 cannot hold"
    return None


def readable(name: str, value: Any, error: type[SglError] = InvalidParamsError) -> None:
    """Raise `error` if `value` is, or contains in lists and mappings, a text of invalid Unicode."""
    if all(part.isascii() for part in _texts(value)):
        return  # nearly always, and without names for all parts: large schemas pass here
    pending = [(name, value)]
    while pending:
        where, part = pending.pop()
        if isinstance(part, str):
            text(where, part, error)
        elif isinstance(part, Mapping):
            pending += [(f"a key of {where}", key) for key in part]
            pending += [(f"{where}[{shown(key)}]", inner) for key, inner in part.items()]
        elif isinstance(part, (list, tuple)):
            pending += [(f"{where}[{i}]", inner) for i, inner in enumerate(part)]


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in nested lists and mappings, keys included."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            pending += part.keys()
            pending += part.values()
        elif isinstance(part, (list, tuple)):
            pending += part


def filled_text(name: str, value: Any, error: type[SglError] = InvalidParamsError) -> str:
    """Return a non-empty text as a plain `str`; raises `error` for other values."""
    return text(name, value, error) or refuse(name, value, "a non-empty text", error)


def items(rule: Rule) -> Rule:
    """Return a rule that takes a list, tuple or array, and returns a tuple of its checked items.

    Each item is checked with `rule`.
    """

    def check(name: str, value: Any) -> tuple[Any, ...]:
        found = listed(value)
        if found is None:
            refuse(name, value, "a list")
        return tuple(rule(name, item) for item in found)

    return check


def listed(value: Any) -> list[Any] | None:
    """Return the items of a list, tuple, array or other sized collection; None for other values.

    Texts, bytes, mappings and iterators give None.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        return None
    try:
        if hasattr(value, "tolist"):  # numpy, mlx, torch, pandas
            found = value.tolist()
            return found if isinstance(found, list) else None
        return list(value) if hasattr(value, "__len__") else None  # an iterator may be endless
    except Exception:  # raised by a class of the caller
        return None


def pattern(name: str, value: Any) -> str:
    """Return a regular expression as a `str`.

    Raises:
        InvalidParamsError: it is empty, or does not compile in Python's `re`.
    """
    found = filled_text(name, value)
    try:
        re.compile(found)
    except re.error as error:
        message = f"{name} {found[:80]!r} at position {error.pos}: {error.msg}"
        raise InvalidParamsError(message) from error
    except (OverflowError, RecursionError, MemoryError) as error:
        raise InvalidParamsError(f"{name} {found[:80]!r}: {error}") from error
    return found


def pattern_text(value: Any) -> Any:
    """Return a compiled regular expression as text, its flags included; other values as they are.

    Flags that the text sets itself (`(?i)` at its beginning) are written only once.
    """
    if not isinstance(value, re.Pattern) or not isinstance(value.pattern, str):
        return value
    bare = re.sub(r"\A\(\?[aiLmsux]+\)", "", value.pattern)
    letters = "".join(letter for letter, flag in _FLAGS.items() if value.flags & flag)
    return f"(?{letters}){bare}" if letters else value.pattern


def biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Return a list of `(token id, number added to the token's logit)` pairs as a tuple of tuples.

    Raises:
        InvalidParamsError: the value is no list of such pairs.
    """
    pairs = listed(value)
    if pairs is None:
        refuse(name, value, "pairs of a token id and a number")
    return tuple(_bias(name, pair) for pair in pairs)


def _bias(name: str, given: Any) -> tuple[int, float]:
    pair = listed(given)
    if pair is None or len(pair) != 2:
        refuse(name, given, "pairs of a token id and a number")
    token, bias = whole(pair[0]), real(pair[1])
    if token is None or not 0 <= token <= INT32 or bias is None or abs(bias) > 1e30:
        raise InvalidParamsError(
            f"{name} adds a finite number, at most 1e30, to a token id of at least 0, got "
            f"{shown(pair[1])} for {shown(pair[0])}"
        )
    return token, bias


def within(limits: object, name: str, found: float, what: str) -> None:
    """Raise `LimitError` if `found` is above the limit named `name`; a limit of None allows all.

    Args:
        limits: a `Limits`, whose attribute `name` is the limit.
        found: how much the request has.
        what: the beginning of the error message, such as what the request has and how much.
    """
    most = getattr(limits, name)
    if most is not None and found > most:
        raise LimitError(name, f"{what}: {limit_told(name, most)}")


def limit_told(name: str, most: float) -> str:
    """Return the words of an error for a limit: its value, and how to raise it."""
    return (
        f"the limit {name} is {most:,}; to raise it, `sgl-mlx serve --limit {name}=N` or "
        f"Limits({name}=N)"
    )


def refuse(
    name: str,
    value: Any,
    wanted: str,
    error: type[SglError] = InvalidParamsError,
    cause: Exception | None = None,
) -> NoReturn:
    """Raise `error` with the message "<name> must be <wanted>, got <value>", chained to `cause`."""
    raise error(f"{name} must be {wanted}, got {shown(value)}") from cause


def whole(value: Any) -> int | None:
    """Return a Python or numpy integer as an `int`; None for other values, booleans included."""
    is_bool = type(value).__name__.startswith("bool")
    if is_bool or not hasattr(value, "__index__") or hasattr(value, "__len__"):
        return None
    try:
        return int(value.__index__())
    except Exception:  # raised by an array, or by a class of the caller
        return None


def real(value: Any) -> float | None:
    """Return a finite Python or numpy number as a `float`; None for other values and booleans."""
    is_bool = type(value).__name__.startswith("bool")
    if is_bool or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        return None
    try:
        found = float(value)
    except Exception:  # too large, or raised by an array or a class of the caller
        return None
    return found if math.isfinite(found) else None


def _short_repr() -> reprlib.Repr:
    made = reprlib.Repr()
    made.maxlevel = 4
    made.maxlist = made.maxtuple = made.maxdict = made.maxset = made.maxfrozenset = 30
    made.maxstring = made.maxother = made.maxlong = 300  # longer ones are cut in their middle
    return made


_SHORT = _short_repr()


def shown(value: Any) -> str:
    """Return a value's `repr` for an error message, at most 80 characters long; never raises.

    Long texts, long lists and deep nesting are cut before they are written, so that a large value
    costs no more time than a small one.
    """
    try:
        huge = isinstance(value, int) and abs(value) >= 10**30
        told = "a huge integer" if huge else _SHORT.repr(value)
    except Exception:  # raised by a class of the caller
        told = f"a {type(value).__name__}"
    return told if len(told) <= 80 else f"{told[:77]}..."


def local_path(source: str | Path) -> Path:
    """Return the path of a local file; `source` is a path, perhaps with `~`, or a `file:` URL.

    Raises:
        RuntimeError: there is no such user as in `~user`.
    """
    if isinstance(source, str) and source[:7].lower() == "file://":
        return Path(url2pathname(urlsplit(source).path))
    return Path(source).expanduser()
