"""The drafters of an engine, made from its option `speculate`."""

from __future__ import annotations

from typing import Literal, get_args

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.cache.radix import RadixTree
from sgl_mlx.runtime.speculation.context import ContextDrafter
from sgl_mlx.runtime.speculation.drafter import Drafter
from sgl_mlx.runtime.speculation.tree import TreeDrafter

Speculate = Literal["auto", "off", "context", "tree"]
"""Names of the ways to draft; "auto" is context and tree."""


def drafters(speculate: Speculate, tree: RadixTree) -> tuple[Drafter, ...]:
    """Make the drafters of an engine; () for "off"."""
    made: list[Drafter] = []
    if speculate in ("auto", "tree"):
        made.append(TreeDrafter(tree))
    if speculate in ("auto", "context"):
        made.append(ContextDrafter())
    return tuple(made)


def check(name: str, value: object) -> Speculate:
    """Return `value` if it names a way to draft.

    Args:
        name: name of the option, for the message.

    Raises:
        InvalidParamsError: `value` names no way to draft.
    """
    for known in get_args(Speculate):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise InvalidParamsError(f"{name} must be {', '.join(get_args(Speculate))}, got {value!r}")
