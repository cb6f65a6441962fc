"""The holding of one sequence: its KV slots, window slots, and its slot of recurrent state."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from sgl_mlx.runtime.cache.radix import PLAIN, Node


@dataclass
class Holding:
    """The slots of one sequence's tokens, and the slot of its recurrent state.

        table:   [ owned by the tree, locked through `node` | held by the sequence ]
                   0 ..................... shared .......................... len(table)

    `PrefixCache.share` gives the slots of computed tokens to the tree.

    Attributes:
        table: the slot of each token.
        shared: number of leading slots that the tree owns.
        node: the tree node at the end of the shared tokens.
        whole: the tokens of the last call of `PrefixCache.share`.
        state: the sequence's own state slot; 0 without recurrent layers.
        ready: True if `state` holds the state after all computed tokens.
        source: the tree node whose state the next step will read, or was read by a step that may
            still be undone. The node's state is pinned meanwhile. None if there is none.
        beside: while a step verifies a draft, the slot that this step writes instead of `state`; 0
            if it writes `state`, which was not `ready`. None while no draft is verified.
        window: the slots, in layers with a sliding window, of the tokens from `behind` on. Empty
            without such layers; else as many as were reserved.
        behind: number of leading tokens without window slots, because no step reads them any more.
        locked_from: where on the path to `node` the first node begins whose window slots are
            locked.
    """

    namespace: Hashable = PLAIN
    table: list[int] = field(default_factory=list)
    shared: int = 0
    node: Node | None = None
    whole: tuple[int, ...] = ()
    state: int = 0
    ready: bool = False
    source: Node | None = None
    beside: int | None = None
    window: list[int] = field(default_factory=list)
    behind: int = 0
    locked_from: int = 0
