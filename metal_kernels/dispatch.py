"""Which attention a step takes, as data: the cut-overs are measured on the user's machine.

    new tokens a row   rows                                      path
    1 (decode)         fewer than `decode_from_rows`, unshared   DENSE
    1 (decode)         otherwise                                 KERNEL (K2 + K2b, K3 for spans)
    2 …                up to the cut-over for their prefix       KERNEL (K1)
    2 …                one, its slots one ascending run          DENSE (a slice, nothing gathered)
    2 …                otherwise                                 DENSE (gather, then MLX's own)

DENSE is MLX's fused attention over keys copied out of the pool. Without a GPU, or where the
kernels do not fit or are not trusted, the runtime has ways of its own and does not ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Path(Enum):
    """How a step's attention is computed."""

    KERNEL = "kernel"
    DENSE = "dense"


@dataclass(frozen=True)
class CutOvers:
    """Where one path becomes better than the other.

    Args:
        extend_up_to: `(prefix, new)` pairs by ascending prefix: over a prefix of that length or
            longer, K1 takes rows of up to `new` tokens.
        decode_from_rows: rows from which K2 decodes though they share nothing.
    """

    extend_up_to: tuple[tuple[int, int], ...] = ((0, 255),)
    decode_from_rows: int = 2

    def longest_extend(self, prefix: int) -> int:
        """New tokens a row up to which K1 is taken over `prefix` keys."""
        return max(((at, new) for at, new in self.extend_up_to if at <= prefix), default=(0, 0))[1]


@dataclass(frozen=True)
class StepShape:
    """What the choice depends on; `new` and `prefix` of the longest row.

    `run`: there is one row and its slots are one ascending run. `shared`: rows share a span.
    """

    new: int
    prefix: int
    rows: int
    run: bool = False
    shared: bool = False


def choose(step: StepShape, cut_overs: CutOvers) -> Path:
    """The path of a step that the kernels could take."""
    if step.new == 1:
        many = step.shared or step.rows >= cut_overs.decode_from_rows
        return Path.KERNEL if many else Path.DENSE
    if step.run or step.new > cut_overs.longest_extend(step.prefix):
        return Path.DENSE
    return Path.KERNEL
