"""The memory of recurrent states: how many slots their pool has, and how many sequences may run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.states import StateShape
from sgl_mlx.runtime.pool.memory import SHARE, left_beside
from sgl_mlx.runtime.pool.states import StatePool

_GIB = 2**30
_IN_STEPS = 3
"""States of a running sequence outside the pool: before a decode step, after it, and after the one
that is submitted ahead."""
_SNAPSHOTS_EACH = 2
"""Snapshots that must fit for each running sequence; otherwise fewer sequences may run."""
_MOST_EACH = 16
"""Most slots for each sequence that may run; more would be of little use."""
START = 16
"""Slots that a pool starts with; it grows when needed."""


class StateBudget(NamedTuple):
    """The memory of a model's recurrent states.

    Attributes:
        slots: most slots of the pool, for running sequences and snapshots together.
        running: most sequences that run at once.
        nbytes: bytes of a pool of `slots`, and of the states that steps keep outside it.
    """

    slots: int
    running: int
    nbytes: int

    def left(self, available: int) -> int:
        """Return how many of `available` bytes the KV pool may count on."""
        return left_beside(self.nbytes, available)


NO_STATES = StateBudget(0, 0, 0)
"""The budget of a model of attention alone."""


def state_budget(
    shapes: Sequence[StateShape],
    wanted: int | None,
    running: int,
    available: int,
    attends: bool = True,
) -> StateBudget:
    """Choose the number of state slots and of running sequences that fit into memory.

    States and KV together may take `SHARE` of `available`; states may take half of that, or all if
    there is no KV.

    Args:
        wanted: number of slots; None lets the memory decide.
        running: most sequences that are to run at once.
        available: bytes free after loading the weights.
        attends: False for a model without attention, which has no KV.

    Raises:
        MemoryLimitError: if `wanted` slots do not fit; or, when `wanted` is None, if one sequence
            and one snapshot do not.
    """
    each = StatePool.bytes_per_slot(shapes)
    share = SHARE / 2 if attends else SHARE
    fitting = int(available * share) // each
    if wanted is None:
        running = min(running, max(fitting // (1 + _IN_STEPS + _SNAPSHOTS_EACH), 1))
        slots = max(min(fitting - _IN_STEPS * running, _MOST_EACH * running), 2)
    else:
        running, slots = min(running, wanted), wanted
    needed = slots + _IN_STEPS * running
    if needed > fitting:
        raise MemoryLimitError(
            f"the recurrent state of one sequence takes {each / _GIB:.3f} GiB in this model; "
            f"{slots} slots for running sequences and snapshots, and {_IN_STEPS} more for each of "
            f"{running} running, take {needed * each / _GIB:.2f} GiB, usable are "
            f"{fitting * each / _GIB:.2f} GiB ({share:.0%} of {available / _GIB:.2f} GiB "
            f"available): {_remedy(wanted, fitting)}"
        )
    return StateBudget(slots, running, needed * each)


def _remedy(wanted: int | None, fitting: int) -> str:
    if wanted is None or fitting < 1 + _IN_STEPS:
        return "choose a smaller or a quantized model, or free memory"
    return f"at most {fitting - _IN_STEPS} slots (max_total_states), with one sequence running"
