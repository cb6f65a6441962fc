"""Which way a step's attention takes: a table, read from the top.

MLX's own kernel is hard to beat on dense shapes; ours win where it would need a gather, a mask or
a fall-back of its own. Where the one begins and the other ends depends on the chip (`CutOvers`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

import mlx.core as mx

from sgl_mlx.metal_kernels.shapes import DTYPES, HEAD_DIMS

SDPA_DIMS = (64, 96, 128)
"""Head dims that MLX's attention takes fused for short and for long queries."""


class Path(Enum):
    """Ways to compute attention, by what they consist of."""

    SLICE = "slice of the pool + SDPA"
    GATHER = "gather + SDPA"
    EXTEND = "K1"
    DECODE = "K2 + K2b"
    SHARED = "K2 + K3 + K2b"
    REFERENCE = "reference"


OURS = frozenset({Path.EXTEND, Path.DECODE, Path.SHARED})
"""Paths that are kernels of our own."""


@dataclass(frozen=True)
class CutOvers:
    """Where one path takes over from another; `tune` finds them.

    Args:
        extend_up_to: `(prefix, new)` by ascending prefix: over a prefix of that length or longer,
            K1 takes rows of up to `new` tokens.
        decode_until: new tokens of a row that K2 still takes.
        decode_from_rows: rows from which K2 decodes though they share nothing.
    """

    extend_up_to: tuple[tuple[int, int], ...] = ((0, 255),)
    decode_until: int = 8
    decode_from_rows: int = 1

    def longest_extend(self, prefix: int) -> int:
        """New tokens a row that K1 takes over `prefix` keys."""
        return max(((at, new) for at, new in self.extend_up_to if at <= prefix), default=(0, 0))[1]


ALWAYS_OURS = CutOvers(extend_up_to=((0, 1 << 30),))
"""Kernels wherever they fit."""


@dataclass(frozen=True)
class Work:
    """What there is to attend.

    Args:
        tokens: new tokens of the row that has most.
        prefix: keys in the pool of the row that has most.
        contiguous: the slots of each row's prefix are one ascending run.
        shared: rows share spans of prefix.
        value_dim: None when it is `dim`.
    """

    rows: int
    tokens: int
    dim: int
    dtype: mx.Dtype
    contiguous: bool = False
    shared: bool = False
    window: int | None = None
    softcap: float | None = None
    quantized: bool = False
    value_dim: int | None = None
    prefix: int = 0

    @property
    def fits_kernels(self) -> bool:
        same = self.value_dim in (None, self.dim)
        return same and self.dim in HEAD_DIMS and self.dtype in DTYPES

    @property
    def fits_sdpa(self) -> bool:
        return self.window is None and self.softcap is None and self.dim in SDPA_DIMS


@dataclass(frozen=True)
class Rule:
    """`path` is taken when `applies`; `when` says the same in words."""

    path: Path
    when: str
    applies: Callable[[Work, CutOvers], bool]


RULES = (
    Rule(
        Path.REFERENCE,
        "a head dim, value width or dtype that the kernels do not take",
        lambda work, cut: not work.fits_kernels,
    ),
    Rule(
        Path.SLICE,
        "one row whose slots are one ascending run, no window or soft-cap, not quantized",
        lambda work, cut: (
            work.rows == 1 and work.contiguous and work.fits_sdpa and not work.quantized
        ),
    ),
    Rule(
        Path.SHARED,
        "few new tokens, rows that share a prefix",
        lambda work, cut: work.tokens <= cut.decode_until and work.shared,
    ),
    Rule(
        Path.DECODE,
        "few new tokens, as many rows as it takes (tuned)",
        lambda work, cut: work.tokens <= cut.decode_until and work.rows >= cut.decode_from_rows,
    ),
    Rule(
        Path.EXTEND,
        "chunks up to a length that depends on the prefix (tuned)",
        lambda work, cut: 1 < work.tokens <= cut.longest_extend(work.prefix),
    ),
    Rule(
        Path.GATHER,
        "what is left without window, soft-cap and unusual head dim",
        lambda work, cut: work.fits_sdpa,
    ),
    Rule(
        Path.DECODE,
        "few new tokens",
        lambda work, cut: work.tokens <= cut.decode_until,
    ),
    Rule(Path.EXTEND, "all else", lambda work, cut: True),
)
"""The first that applies is taken; see `choose_path`."""

EVERY_PATH = frozenset(Path)


def choose_path(
    work: Work, cut_overs: CutOvers | None = None, allowed: Collection[Path] = EVERY_PATH
) -> Path:
    """The first path of `RULES` that applies and is allowed; else the reference.

    Args:
        allowed: paths that this machine can take: none of ours without Metal, or after a
            self-test failed.
    """
    cut = cut_overs or CutOvers()
    taken = (rule.path for rule in RULES if rule.path in allowed and rule.applies(work, cut))
    return next(taken, Path.REFERENCE)
