"""Docstrings split into their text and sections, for pages of documentation."""

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
    """A docstring, split into its sections.

    Attributes:
        text: text before the first section.
        entries: descriptions in the sections `Args` and `Attributes`, by name.
        returns: text of the section `Returns`; empty if there is none.
        raises: text of the section `Raises`; empty if there is none.
    """

    text: str
    entries: Mapping[str, str] = field(default_factory=dict)
    returns: str = ""
    raises: str = ""

    @classmethod
    def of(cls, thing: Any) -> Docstring:
        """Split the docstring of a class or function; all parts are empty if there is none."""
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
    """Join the lines of a text into one line."""
    return " ".join(text.split())


def table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table with the headings `heads`."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )
