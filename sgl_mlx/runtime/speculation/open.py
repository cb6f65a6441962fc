"""The drafters of an engine, made from its option `speculate`."""

from __future__ import annotations

from typing import Literal, cast, get_args

from sgl_mlx import bounds
from sgl_mlx.runtime.cache.radix import RadixTree
from sgl_mlx.runtime.speculation.context import ContextDrafter
from sgl_mlx.runtime.speculation.drafter import Drafter
from sgl_mlx.runtime.speculation.tree import TreeDrafter

Speculate = Literal["auto", "off", "context", "tree", "mtp"]
"""Names of the ways to draft; "auto" is context and tree, and mtp if the checkpoint has a head."""


def drafters(speculate: Speculate, tree: RadixTree) -> tuple[Drafter, ...]:
    """Make the drafters of an engine; () for "off" and "mtp" (see `mtp.MtpDrafter`)."""
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
    known = get_args(Speculate)
    if not isinstance(value, str) or value not in known:
        bounds.refuse(name, value, ", ".join(known))
    return cast("Speculate", value)
