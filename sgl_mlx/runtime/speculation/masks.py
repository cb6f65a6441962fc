"""Walk of a draft (guessed tokens) through a sequence's constraint, which is not changed."""

from __future__ import annotations

from sgl_mlx.runtime.scheduler.sequence import Constraint


def walk(
    constraint: Constraint, draft: tuple[int, ...]
) -> tuple[tuple[int, ...], list[bytes | None]]:
    """Cut a draft where a constraint forbids it; return what is left, and the masks of its places.

    The draft also ends where the constraint forces tokens, ends the output, or is done: from there
    on the tokens are decided without the model, or without the constraint.

    Returns:
        The cut draft, and the masks of the tokens allowed after 0, 1, 2 … of its tokens: one mask
        more than the cut draft has tokens. None stands for a mask that allows every token.
    """
    ahead = constraint.copy()
    masks: list[bytes | None] = [ahead.allowed()]
    for count, token in enumerate(draft):
        mask = masks[-1]
        assert mask is not None
        if not _allows(mask, token):
            return draft[:count], masks
        ahead.accept(token)
        if ahead.complete or ahead.done:
            return draft[: count + 1], [*masks, None]
        masks.append(ahead.allowed())
        if ahead.error is not None:  # left for the next step to report
            return draft[:count], masks[:-1]
        if ahead.forced():
            return draft[: count + 1], masks
    return draft, masks


def _allows(mask: bytes, token: int) -> bool:
    return token >> 3 < len(mask) and bool(mask[token >> 3] & 1 << (token & 7))
