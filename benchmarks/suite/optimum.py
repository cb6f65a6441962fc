"""Smallest number of prompt tokens to compute: Theorem 3.1 of the SGLang paper (arXiv 2312.07104).

All prompts form a tree of tokens. With a cache that holds everything, each node is computed once,
or not at all if a generation has written it. If the same prompt is asked again, its last token is
computed again, since the logits of that token are needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """Prompt and output of one call, in tokens; a `scored` prompt needs no logits at its end."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    scored: bool = False


@dataclass(frozen=True)
class Optimum:
    """The optimum of a run: `unique` of `total` prompt tokens must be computed."""

    total: int
    unique: int

    @classmethod
    def of(cls, asked: Iterable[Asked | None]) -> Optimum | None:
        """Return the optimum of calls, which does not depend on their order.

        Returns None if any call is None, which stands for a call with pictures or joined forks.
        """
        calls = list(asked)
        known = [call for call in calls if call is not None]
        if len(known) < len(calls):
            return None
        tree, total, unique = _Node(), 0, 0
        for call in known:  # all outputs before any prompt: the order of calls is ignored
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
