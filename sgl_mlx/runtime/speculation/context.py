"""Drafter that repeats what followed the same tokens earlier in the sequence.

It pays where a model copies: edits, quotes, records, code. Known as prompt lookup decoding
(Saxena, 2023) and as the n-gram drafter of other runtimes.
"""

from __future__ import annotations

from sgl_mlx.runtime.scheduler.sequence import Sequence
from sgl_mlx.runtime.speculation.drafter import Proposal
from sgl_mlx.runtime.speculation.runs import RunIndex

_INDEXED_AT_ONCE = 8192
"""Most tokens indexed in one step, so that a long prompt does not hold up other sequences."""


class ContextDrafter:
    """Drafter from a sequence's own prompt and output."""

    def __init__(self) -> None:
        self._indexes: dict[str, RunIndex] = {}

    def propose(self, s: Sequence, limit: int) -> Proposal | None:
        index = self._indexes.get(s.id)
        if index is None or index.tokens is not s.tokens:
            index = self._indexes[s.id] = RunIndex(s.tokens)
        index.update(_INDEXED_AT_ONCE)
        found = index.find(s.tokens)
        if found is None:
            return None
        return repeated("context", _repeat(s.tokens, found.end, limit), found.length)

    def ended(self, s: Sequence) -> None:
        self._indexes.pop(s.id, None)

    def flush(self) -> None:
        self._indexes.clear()


def repeated(drafter: str, tokens: tuple[int, ...], agreed: int) -> Proposal:
    """Make a proposal of tokens that followed the last `agreed` tokens at an earlier place.

    The longer the match, the likelier the proposal is right. So short, medium and long matches
    count as three sources.
    """
    if agreed < 5:
        return Proposal(tokens, f"{drafter} few", 0.5)
    if agreed < 12:
        return Proposal(tokens, f"{drafter} some", 0.8)
    return Proposal(tokens, f"{drafter} many", 0.95)


def _repeat(tokens: list[int], start: int, limit: int) -> tuple[int, ...]:
    """Return `limit` tokens from index `start` on; repeat them if the list ends too early."""
    period = tokens[start : start + limit]
    times = -(-limit // len(period))
    return tuple((period * times)[:limit])
