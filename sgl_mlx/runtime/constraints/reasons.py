"""Rewriting of llguidance's error messages for callers who do not know llguidance."""

from __future__ import annotations

import re
from collections.abc import Callable

from sgl_mlx.names import meant
from sgl_mlx.runtime.constraints.lark import NO_FORCING

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_ALIASES = {
    **{"str": "string", "int": "integer", "float": "number", "bool": "boolean"},
    **{"dict": "object", "map": "object", "struct": "object", "list": "array"},
}
"""Names of types that other languages have, and those of JSON Schema."""


def _no_type(found: re.Match[str]) -> str:
    """Return what is wrong with a type that JSON Schema does not have."""
    name = found[1]
    alias = _ALIASES.get(name.lower())
    guess = f"; did you mean {alias!r}?" if alias else meant([name], _TYPES)
    return f"type {name!r} is none of {', '.join(_TYPES)}{guess}"


_REWRITES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\AInvalid type: (.*)", _no_type),
    (r"\AFailed to generate regex for (integer|float) range: .*", "its bounds are too far from 0"),
    (r".*Too many items \(limit.*", "it needs too many values at once, perhaps endlessly many"),
    (r"\ANoExtensionBias\Z", "nothing can match it"),
    (
        r"Regex is empty:.*",
        "no text fits its keywords together, such as a format or pattern and a length",
    ),
    (
        r"Unable to determine if regex is empty:.*",
        "its keywords together, such as a format or pattern and a length, are too hard to combine",
    ),
    (r"\AUnimplemented keys: \[(.*)\].*", r"not supported: \1"),
    (
        r"\AoneOf constraints are not supported\..*",
        "oneOf is supported only if at most one of its schemas can match; write anyOf",
    ),
    (r" in a registry and retrieving it failed.*", " in the schema, and nothing is fetched"),
)


_LONG = 160
"""Most characters of a line that are shown."""


def reason(error: str) -> str:
    """Return an error message of llguidance, reworded if `_REWRITES` has words for it.

    A message that quotes a long line of the grammar is shortened.
    """
    shown = error.removesuffix("<non-verbose/>").strip()
    lines = [line for line in shown.splitlines() if not line.endswith(NO_FORCING)]
    shown = "\n".join(line if len(line) <= _LONG else f"{line[:_LONG]}..." for line in lines)
    for pattern, words in _REWRITES:
        shown = re.sub(pattern, words, shown, flags=re.DOTALL)
    return shown
