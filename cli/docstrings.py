"""Docstrings as parts of a page: a text, and tables of what their sections list."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w[\w, ]*): ", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts.

    Attributes:
        text: all before the first section.
        entries: what `Args` and `Attributes` say, by name.
        returns, raises: the text of those sections.
    """

    text: str
    entries: Mapping[str, str] = field(default_factory=dict)
    returns: str = ""
    raises: str = ""

    @classmethod
    def of(cls, thing: Any) -> Docstring:
        """Take the docstring of a class or function apart."""
        text, *sections = _SECTION.split(inspect.getdoc(thing) or "")
        named = dict(zip(sections[::2], sections[1::2], strict=True))
        entries = {**_entries(named.get("Args", "")), **_entries(named.get("Attributes", ""))}
        returns, raises = (_flowing(named.get(name, "")) for name in ("Returns", "Raises"))
        return cls(text.strip(), entries, returns, raises)


def _entries(section: str) -> dict[str, str]:
    _, *parts = _ENTRY.split(section)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: _flowing(text) for names, text in pairs for name in names.split(", ")}


def _flowing(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())


def table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )
