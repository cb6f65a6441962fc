"""Translation of Python's regular expressions to Rust's dialect, which llguidance reads.

Python itself parses the pattern, and the result is written in Rust's syntax. So a class such as
`[a&&b]` or `[[x]` keeps Python's meaning. A construct that a grammar cannot express is an error.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from sgl_mlx.errors import InvalidParamsError

_UNICODE = min("16.0", unicodedata.unidata_version.rpartition(".")[0])
"""Python's version of Unicode, 16.0 at most; classes leave out characters of later versions."""

_CATEGORIES = {"DIGIT": r"\p{Nd}", "WORD": r"\p{L}\p{N}_", "SPACE": r"\s\x1c-\x1f"}
_ASCII_CATEGORIES = {"DIGIT": "0-9", "WORD": "0-9A-Za-z_", "SPACE": r" \t-\r"}

_REFUSED = {
    "ASSERT": "look-ahead and look-behind, (?=…) and (?<=…),",
    "ASSERT_NOT": "negative look-ahead and look-behind, (?!…) and (?<!…),",
    "FAILURE": "negative look-ahead, (?!…),",
    "GROUPREF": "a back-reference such as \\1 or (?P=name)",
    "GROUPREF_EXISTS": "a conditional group, (?(1)…|…),",
    "ATOMIC_GROUP": "an atomic group, (?>…),",
    "POSSESSIVE_REPEAT": "a possessive repeat such as a++",
}
_ANCHORS = {
    "AT_BEGINNING": "^",
    "AT_BEGINNING_STRING": r"\A",
    "AT_END": "$",
    "AT_END_STRING": r"\Z",
    "AT_BOUNDARY": r"\b",
    "AT_NON_BOUNDARY": r"\B",
}

_PROPERTY = re.compile(r"\\[pP](?:\{[^{}]*\}|[A-Z])|\\.", re.DOTALL)
_ECMA_GROUP = re.compile(r"\(\?<(?![=!])")
_PRIVATE = 0xF0000
"""First of the private characters that replace `\\p{…}`, which Python's parser does not know."""


def to_rust(pattern: str, what: str = "regex", search: bool = False) -> str:
    """Translate a pattern to the dialect of Rust's `regex-syntax`, with the same meaning.

    Args:
        pattern: a pattern for `re.fullmatch`; it may also contain `\\p{L}` and the like.
        what: the pattern's name in error messages.
        search: True for a JSON Schema's pattern, which may match anywhere in a text. Then anchors
            are kept, ECMAScript's `(?<name>…)` is accepted, and a class such as `\\w` matches only
            characters that it matches both in Python and in ECMAScript.

    Raises:
        InvalidParamsError: the pattern is malformed, too large, or contains a construct that no
            grammar can express.
    """
    properties: list[str] = []

    def stand_in(escape: re.Match[str]) -> str:
        if escape[0][1] not in "pP":
            return escape[0]
        properties.append(escape[0])
        return chr(_PRIVATE + len(properties) - 1)

    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            readable = _ECMA_GROUP.sub("(?P<", pattern) if search else pattern
            parsed = _parser.parse(_PROPERTY.sub(stand_in, readable))
        return _Writer(properties, search).sequence(parsed, parsed.state.flags, True, True)
    except re.error as e:
        at = "" if e.pos is None else f" at position {e.pos}"
        raise InvalidParamsError(f"{what} {short(pattern)}{at}: {e.msg}") from e
    except (RecursionError, OverflowError) as e:
        raise InvalidParamsError(f"{what} {short(pattern)} is too large or too deep") from e
    except _Unsupported as e:
        raise InvalidParamsError(f"{what} {short(pattern)}: {e}") from e


def short(text: str) -> str:
    """Quote a text for an error message, cut to 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


class _Unsupported(Exception):
    """Part of a pattern that no grammar can express."""


class _Writer:
    """Writer of a parsed pattern in Rust's syntax.

    The arguments `start` and `end` of its methods say whether a part stands at the start or the end
    of the pattern, where anchors are allowed.
    """

    def __init__(self, properties: Sequence[str], search: bool) -> None:
        self._search = search
        self._properties = {_PRIVATE + i: name for i, name in enumerate(properties)}

    def sequence(self, items: Any, flags: int, start: bool, end: bool) -> str:
        written: list[str] = []
        for i, (op, argument) in enumerate(items):
            first = start and not any(written[:i])
            last = end and all(o is sre.AT for o, _ in items[i + 1 :])
            written.append(self._item(str(op), argument, flags, first, last))
        return "".join(written)

    def _item(self, op: str, argument: Any, flags: int, start: bool, end: bool) -> str:
        match op:
            case "LITERAL":
                return self._cased(self._character(argument), flags)
            case "NOT_LITERAL":
                return self._cased(f"[^{self._character(argument)}]", flags)
            case "ANY":
                return r"[\s\S]" if flags & re.DOTALL else r"[^\n]"
            case "IN":
                return self._cased(self._set(argument, flags), flags)
            case "BRANCH":
                branches = [self.sequence(b, flags, start, end) for b in argument[1]]
                return f"(?:{'|'.join(branches)})"
            case "SUBPATTERN":
                _, added, removed, inner = argument
                inside = self.sequence(inner, (flags | added) & ~removed, start, end)
                return f"(?:{inside})" if inside else ""
            case "MAX_REPEAT" | "MIN_REPEAT":
                low, high, inner = argument
                once = high == 1
                inside = self.sequence(inner, flags, start and once, end and once)
                return f"(?:{inside}){_count(low, high)}" if inside else ""
            case "AT":
                return self._anchor(str(argument), start, end)
        raise _Unsupported(f"{_REFUSED.get(op, op)} is not supported")

    def _anchor(self, where: str, start: bool, end: bool) -> str:
        begins = where in ("AT_BEGINNING", "AT_BEGINNING_STRING")
        if (begins and start) or (where in ("AT_END", "AT_END_STRING") and end):
            return ("^" if begins else "$") if self._search else ""
        inside = "" if "BOUNDARY" in where else " inside a pattern"
        raise _Unsupported(f"{_ANCHORS[where]}{inside} is not supported")

    def _set(self, items: Any, flags: int) -> str:
        negated = bool(items) and items[0][0] is sre.NEGATE
        parts = (self._member(str(op), arg, flags, negated) for op, arg in items[negated:])
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _member(self, op: str, argument: Any, flags: int, outside: bool) -> str:
        if op == "LITERAL":
            return self._character(argument)
        if op == "RANGE":
            return f"{self._character(argument[0])}-{self._character(argument[1])}"
        _, _, name = str(argument).rpartition("_")
        negated = "^" if "_NOT_" in str(argument) else ""
        narrow = self._search and outside == bool(negated)  # ECMAScript's classes are ASCII
        if flags & re.ASCII or narrow:
            return f"[{negated}{_ASCII_CATEGORIES[name]}]"
        return rf"[{negated}[{_CATEGORIES[name]}]&&\p{{Age={_UNICODE}}}]"

    def _character(self, code: int) -> str:
        if code in self._properties:
            return self._properties[code]
        if 0xD800 <= code < 0xE000:
            raise _Unsupported(f"half a surrogate pair, \\u{code:x}, is no character")
        return chr(code) if chr(code).isalnum() else f"\\x{{{code:x}}}"

    @staticmethod
    def _cased(written: str, flags: int) -> str:
        return f"(?i:{written})" if flags & re.IGNORECASE else written


def _count(low: Any, high: Any) -> str:
    if high is sre.MAXREPEAT:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return "?" if (low, high) == (0, 1) else f"{{{low},{high}}}"
