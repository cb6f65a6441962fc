"""Verification of drafted tokens: the sampled places of a row, and which tokens are accepted.

A token depends on its logits, its seed and its position alone (see `sampler`). So a drafted token
is accepted if it equals the token sampled in its place, and the first drafted token that differs is
replaced by the sampled one. The output is the same as without drafts.
"""

from __future__ import annotations

from dataclasses import replace

from sgl_mlx.runtime.scheduler.plan import Row


def places(row: Row) -> list[Row]:
    """Split a row for sampling: one row after the last decided token and after each draft token."""
    first = len(row.tokens) - row.drafted
    return [_place(row, row.tokens[first : first + i]) for i in range(row.drafted + 1)]


def accept(row: Row, sampled: tuple[int, ...]) -> tuple[int, ...]:
    """Cut the sampled tokens after the first that differs from the drafted token in its place.

    Args:
        sampled: the token sampled at each of `places(row)`.

    Returns:
        The accepted tokens, followed by one more sampled token.
    """
    drafted = row.tokens[len(row.tokens) - row.drafted :]
    count = next((i for i, token in enumerate(drafted) if token != sampled[i]), row.drafted)
    return sampled[: count + 1]


def _place(row: Row, before: tuple[int, ...]) -> Row:
    if not before:
        return row
    history = row.history and row.history + before
    return replace(row, output=row.output + before, history=history, place=len(before))
