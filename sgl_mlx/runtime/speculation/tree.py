"""Drafter from the radix tree and from recent outputs: repeats what other sequences wrote.

A program that runs again, a retry, a sibling branch and the samples of one prompt often write what
an earlier one wrote. The radix tree holds earlier outputs already, so this needs no extra memory.
Recent outputs are also indexed by their runs of tokens, for texts whose prompts differ.
"""

from __future__ import annotations

from collections.abc import Hashable

from sgl_mlx.runtime.cache.radix import Node, RadixTree
from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.context import repeated
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.runs import SHORTEST, RunIndex

_KEPT_TOKENS = 32_768
"""Most tokens of recent outputs kept for each namespace."""
_KEPT_NAMESPACES = 16
_BOUNDARY = -1
"""Stands between two outputs; no token has this id."""
_LARGEST_TOKEN = 2**31 - 1
"""Largest possible token id; larger numbers in the tree are pictures (`sequence.Picture.key`)."""


class TreeDrafter:
    """Drafter from the tree below a sequence's last token, else from recent outputs.

    Args:
        tree: the engine's radix tree; it is read, never changed.
    """

    def __init__(self, tree: RadixTree) -> None:
        self._tree = tree
        self._nodes: dict[str, Node] = {}
        self._recent: dict[Hashable, RunIndex] = {}

    def propose(self, s: Sequence, limit: int) -> Proposal | None:
        below, node = self._tree.continuation(s.key, s.namespace, self._nodes.get(s.id), limit)
        self._nodes[s.id] = node
        tokens = _text(below)
        return Proposal(tokens, "tree") if tokens else self._from_recent(s, limit)

    def ended(self, s: Sequence) -> None:
        self._nodes.pop(s.id, None)
        output = s.output_tokens
        if len(output) < 2 * SHORTEST:
            return
        start = max(s.prompt_length - SHORTEST, 0)
        kept = self._recent.pop(s.namespace, None)
        tokens = [] if kept is None else kept.tokens
        if len(tokens) > _KEPT_TOKENS:
            kept, tokens = None, tokens[-_KEPT_TOKENS // 2 :]
        index = RunIndex(tokens) if kept is None else kept
        index.tokens += [_BOUNDARY, *s.tokens[start:]]
        self._recent[s.namespace] = index  # the latest namespace is the last one
        while len(self._recent) > _KEPT_NAMESPACES:
            del self._recent[next(iter(self._recent))]

    def flush(self) -> None:
        self._nodes.clear()
        self._recent.clear()

    def _from_recent(self, s: Sequence, limit: int) -> Proposal | None:
        index = self._recent.get(s.namespace)
        if index is None:
            return None
        index.update(_KEPT_TOKENS)
        found = index.find(s.tokens)
        if found is None:
            return None
        after = index.tokens[found.end : found.end + limit]
        tokens = _text(after)
        return repeated("recent", tokens, found.length) if tokens else None


def _text(tokens: list[int]) -> tuple[int, ...]:
    """Return the tokens before the first boundary or picture."""
    ends = (i for i, token in enumerate(tokens) if not 0 <= token <= _LARGEST_TOKEN)
    return tuple(tokens[: next(ends, len(tokens))])
