"""Appending of tokens to a sequence: sampled tokens, and tokens that its constraint forces."""

from __future__ import annotations

from sgl_mlx.core import FinishReason
from sgl_mlx.runtime.scheduler.plan import Scores
from sgl_mlx.runtime.scheduler.sequence import Constraint, Sequence


def append(s: Sequence, tokens: tuple[int, ...], scores: Scores | None) -> FinishReason | None:
    """Append sampled tokens to a sequence, and after each the tokens that its constraint forces.

    Once tokens were forced or the sequence has ended, the remaining sampled tokens are dropped. No
    token is appended if the constraint allows none.

    Args:
        scores: logprobs of `tokens`; None if the sequence wants none.

    Returns:
        Why the sequence ends; None if it goes on.
    """
    reason = _dead_end(s.constraint)
    for i, token in enumerate(tokens):
        length = len(s.tokens)
        if reason is None:
            reason = _take(s, token, None if scores is None else scores.at(i))
        if reason is None and s.constraint is not None:
            reason = _follow(s, s.constraint, token)
        if reason is not None or len(s.tokens) > length + 1:
            break
    return reason


def _take(
    s: Sequence, token: int, scores: Scores | None, forced: bool = False
) -> FinishReason | None:
    s.tokens.append(token)
    reason = s.output.push(token, scores, forced)
    if reason is None and s.remaining <= 0:
        reason = FinishReason("length", length=s.params.max_new_tokens)
    return reason


def _follow(s: Sequence, constraint: Constraint, token: int) -> FinishReason | None:
    """Tell the constraint the new token; append the tokens it forces, whose KV is computed later.

    Returns:
        Why the sequence ends; None if it goes on. A constraint that is done is removed.
    """
    constraint.accept(token)
    for forced in constraint.forced():
        reason = _take(s, forced, None, forced=True)
        if reason is not None:
            return reason
    if constraint.complete:
        return _dead_end(constraint) or FinishReason("stop")
    if constraint.done:
        s.constraint = None
    return None


def _dead_end(constraint: Constraint | None) -> FinishReason | None:
    """Return the reason to abort if the constraint allows no token at all, else None."""
    if constraint is None or constraint.error is None:
        return None
    return FinishReason("abort", message=f"the grammar came to a dead end: {constraint.error}")
