"""The prefixes that prompts have in common, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sgl_mlx.server.doctor.history import Seen, shared

_SHOWN = 60


@dataclass(frozen=True)
class Branch:
    """A text that prompts have in common, after the text of the branch above.

    Attributes:
        text: the common text.
        prompts: the prompts that have this text here.
        children: how these prompts go on after the text: one branch for each next character.
    """

    text: str
    prompts: tuple[Seen, ...]
    children: tuple[Branch, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the branch as JSON: a long text is shortened, and its tokens are estimated."""
        whole = self.text if len(self.text) <= 2 * _SHOWN else None
        first = self.prompts[0]
        rate = (first.prompt_tokens or 0) / max(len(first.content), 1)
        return {
            "text": whole or f"{self.text[:_SHOWN]} … {self.text[-_SHOWN:]}",
            "tokens": round(rate * len(self.text)),
            "prompts": [seen.id for seen in self.prompts],
            "children": [child.to_dict() for child in self.children],
        }


def branches(prompts: Sequence[Seen]) -> tuple[Branch, ...]:
    """Return the tree of the prompts that were given as text; prompts of token ids are left out."""
    texts = [(str(seen.content), seen) for seen in prompts if isinstance(seen.content, str)]
    return _grow(sorted(texts, key=lambda row: row[0]), 0)


def _grow(rows: Sequence[tuple[str, Seen]], start: int) -> tuple[Branch, ...]:
    """Return the branches of sorted texts that are equal before character `start`."""
    longer = [row for row in rows if len(row[0]) > start]
    made = []
    for _, group in groupby(longer, key=lambda row: row[0][start]):
        alike = list(group)
        first, last = alike[0][0], alike[-1][0]
        end = start + shared(first[start:], last[start:])
        children = _grow(alike, end)
        made.append(Branch(first[start:end], tuple(seen for _, seen in alike), children))
    return tuple(made)
