"""Division of a step's tokens among its sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import Row
from sgl_mlx.runtime.scheduler.sequence import Sequence

_ALTERNATIVES_COST = 4
"""Cost of scoring a prompt token with its likeliest tokens, relative to scoring it alone (3.4 as
measured on a CPU with a vocabulary of 49,152)."""


@dataclass(frozen=True)
class Share:
    """One sequence's part of a step: its next `count` tokens, and the drafted tokens after them."""

    sequence: Sequence
    count: int
    drafted: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.count + len(self.drafted)

    def row(self) -> Row:
        """Make the batch row."""
        s = self.sequence
        return s.row(self.count, s.computed + self.tokens, self.drafted)

    def cut(self, tokens: int) -> Share:
        """Return the part for the first `tokens` tokens, drafted ones included."""
        count = min(self.count, tokens)
        return replace(self, count=count, drafted=self.drafted[: tokens - count])


def divide(
    sequences: Iterable[Sequence],
    drafts: Mapping[str, tuple[int, ...]],
    limits: SchedulerLimits,
) -> list[Share]:
    """Divide a step: decoding sequences first, with their drafts, then prompt chunks.

    All together keep to `step_tokens` and `score_tokens`. A scored token with likeliest
    alternatives counts as `_ALTERNATIVES_COST`, because finding them sorts the vocabulary.
    """
    room, score_room = limits.step_tokens, limits.score_tokens
    shares: list[Share] = []
    for s in sorted(sequences, key=lambda s: s.prefilling):
        count = min(s.until_cut, len(s.table) - s.computed, room)
        if s.logprob_start is not None:
            cost = _ALTERNATIVES_COST if s.params.top_logprobs_num else 1
            unscored = max(s.logprob_start - 1 - s.computed, 0)
            count = min(count, unscored + max(score_room // cost, min(score_room, 1)))
            score_room = max(score_room - cost * max(count - unscored, 0), 0)
        if count > 0:
            drafted = drafts.get(s.id, ())[: len(s.table) - s.computed - count]
            shares.append(Share(s, count, drafted))
            room -= shares[-1].tokens
    return shares
