"""Rules that choose the implementation of a step's attention: a table; the first match counts.

MLX's own kernel is hard to beat on contiguous keys. Our kernels are faster where MLX's would need a
gather, a mask or its slow path. The sizes at which ours take over depend on the chip (`CutOvers`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

import mlx.core as mx

from sgl_mlx.metal_kernels.plan import CHUNKS
from sgl_mlx.metal_kernels.shapes import DTYPES, WIDTHS

SDPA_DIMS = (64, 96, 128)
"""Head dims for which MLX's attention is fused for any number of query tokens."""


class AttentionPath(Enum):
    """Implementations of a step's attention; the values are names for `sgl-mlx kernels list`."""

    SLICE = "slice of the pool + SDPA"
    GATHER = "gather + SDPA"
    EXTEND = "extend kernel"
    DECODE = "decode kernel"
    SHARED = "decode + shared kernel"
    REFERENCE = "reference"


OURS = frozenset({AttentionPath.EXTEND, AttentionPath.DECODE, AttentionPath.SHARED})
"""Paths that use our own Metal kernels."""


@dataclass(frozen=True)
class CutOvers:
    """Sizes at which one path takes over from another; `tune` measures them for a machine.

    A row is one sequence in a step.

    Args:
        extend_up_to: pairs `(prefix, new)` by ascending prefix. For prefixes of this length or
            longer, the extend kernel is used for rows of up to `new` new tokens.
        decode_until: most new tokens per row for which the decode kernel is used.
        decode_from_rows: fewest rows without a shared prefix for which the decode kernel is used.
        decode_items: number of key chunks, over all KV heads, that keeps the whole GPU busy in a
            decode step. If long chunks would be fewer than this, shorter chunks are used.
    """

    extend_up_to: tuple[tuple[int, int], ...] = ((0, 255),)
    decode_until: int = 8
    decode_from_rows: int = 1
    decode_items: int = 256

    def longest_extend(self, prefix: int) -> int:
        """Return the most new tokens per row for the extend kernel after `prefix` prefix keys."""
        return max(((at, new) for at, new in self.extend_up_to if at <= prefix), default=(0, 0))[1]

    def chunk(self, keys: int, kv_heads: int) -> int:
        """Choose the number of keys that the decode kernel puts into one partial softmax.

        Args:
            keys: number of keys of all rows together.
            kv_heads: number of KV heads.
        """
        enough = (c for c in CHUNKS if keys * kv_heads >= self.decode_items * c)
        return max(enough, default=CHUNKS[0])


ALWAYS_OURS = CutOvers(extend_up_to=((0, 1 << 30),))
"""Cut-overs that choose our kernels wherever they fit."""


@dataclass(frozen=True)
class Work:
    """Description of one layer's attention in a step, by which a path is chosen.

    Args:
        rows: number of sequences.
        tokens: largest number of new tokens in a row.
        prefix: largest number of prefix keys of a row in the KV pool.
        contiguous: True if each row's prefix is in consecutive slots.
        shared: True if rows share parts of their prefixes.
        value_dim: None if it equals `dim`.
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
        return (self.dim, self.value_dim or self.dim) in WIDTHS and self.dtype in DTYPES

    @property
    def fits_sdpa(self) -> bool:
        same = self.value_dim in (None, self.dim)
        plain = self.window is None and self.softcap is None
        return plain and same and self.dim in SDPA_DIMS


@dataclass(frozen=True)
class Rule:
    """Rule that chooses `path` if `applies` returns True; `when` is the condition in words."""

    path: AttentionPath
    when: str
    applies: Callable[[Work, CutOvers], bool]


RULES = (
    Rule(
        AttentionPath.REFERENCE,
        "a head dim, value width or dtype that the kernels do not take",
        lambda work, cut: not work.fits_kernels,
    ),
    Rule(
        AttentionPath.SLICE,
        "one row whose slots are one ascending run, no window or soft-cap, not quantized",
        lambda work, cut: (
            work.rows == 1 and work.contiguous and work.fits_sdpa and not work.quantized
        ),
    ),
    Rule(
        AttentionPath.SHARED,
        "few new tokens, rows that share a prefix",
        lambda work, cut: work.tokens <= cut.decode_until and work.shared,
    ),
    Rule(
        AttentionPath.DECODE,
        "few new tokens, at least a number of rows that is tuned",
        lambda work, cut: work.tokens <= cut.decode_until and work.rows >= cut.decode_from_rows,
    ),
    Rule(
        AttentionPath.EXTEND,
        "chunks up to a length that depends on the prefix (tuned)",
        lambda work, cut: 1 < work.tokens <= cut.longest_extend(work.prefix),
    ),
    Rule(
        AttentionPath.GATHER,
        "other work without window, soft-cap and unusual head dim",
        lambda work, cut: work.fits_sdpa,
    ),
    Rule(
        AttentionPath.DECODE,
        "few new tokens",
        lambda work, cut: work.tokens <= cut.decode_until,
    ),
    Rule(AttentionPath.EXTEND, "all else", lambda work, cut: True),
)
"""Rules in order; `choose_path` takes the first that applies."""

EVERY_PATH = frozenset(AttentionPath)


def choose_path(
    work: Work, cut_overs: CutOvers | None = None, allowed: Collection[AttentionPath] = EVERY_PATH
) -> AttentionPath:
    """Choose the first path in `RULES` that applies and is allowed; if there is none, REFERENCE.

    Args:
        cut_overs: the default values if None.
        allowed: paths that this machine can use; without Metal, none of `OURS`.
    """
    cut = cut_overs or CutOvers()
    taken = (rule.path for rule in RULES if rule.path in allowed and rule.applies(work, cut))
    return next(taken, AttentionPath.REFERENCE)
