"""The fewest prompt tokens to compute: Theorem 3.1 of the SGLang paper (arXiv 2312.07104).

With a cache that holds everything, each node of the tree of all prompts is computed once, unless a
generation before had written it. One more token is computed of a prompt that another had as a
whole, since its logits are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """A prompt and what was generated after it, in tokens; `scored` prompts need no logits."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    scored: bool = False


@dataclass(frozen=True)
class Optimum:
    """`unique` of `total` prompt tokens must be computed."""

    total: int
    unique: int

    @classmethod
    def of(cls, asked: Iterable[Asked | None]) -> Optimum | None:
        """Return the optimum of calls in any order; None if a call holds more than tokens."""
        calls = list(asked)
        known = [call for call in calls if call is not None]
        if len(known) < len(calls):
            return None
        tree, total, unique = _Node(), 0, 0
        for call in known:  # what generations write first, whatever came first in time
            node = tree
            for token in call.prompt:
                node = node.child(token)
            for token in call.output[:-1]:  # the last token sampled has no KV
                node = node.child(token)
                node.written = True
        for call in known:
            node = tree
            for token in call.prompt:
                node = node.child(token)
                unique += not (node.written or node.computed)
                node.computed = True
            total += len(call.prompt)
            again = node.asked and not call.scored
            unique += again
            node.asked = True
        return cls(total, unique)


class _Node:
    __slots__ = ("asked", "children", "computed", "written")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.computed = self.written = self.asked = False

    def child(self, token: int) -> _Node:
        found = self.children.get(token)
        if found is None:
            found = self.children[token] = _Node()
        return found
