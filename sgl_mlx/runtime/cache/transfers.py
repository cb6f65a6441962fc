"""What moves between the pool and a second tier, as plain integers.

The scheduler notes transfers as it hands slots out; a plan carries them, and the runner makes
them, in order, before it computes the plan. Until then nothing writes to the slots of a `Spill`,
and nothing reads those of a `Load`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spill:
    """Blocks to copy out before their slots are used for something else.

    Args:
        keys: of the blocks; see `tier`.
        slots: of their tokens, one block after the other.
    """

    keys: tuple[str, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """KV to write into slots.

    Args:
        slots: of consecutive tokens.
        payload: their KV, preceded by that of `skip` tokens not wanted; known to the runner alone.
    """

    slots: tuple[int, ...]
    payload: Any
    skip: int = 0


Transfer = Spill | Load
