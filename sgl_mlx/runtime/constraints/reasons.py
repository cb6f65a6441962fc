"""Rewriting of llguidance's error messages for callers who do not know llguidance."""

from __future__ import annotations

import re

from sgl_mlx.runtime.constraints.lark import NO_FORCING

_REWRITES = (
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
