"""Choosing a step's attention: plain MLX, MLX's fused kernel, or our kernels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from sgl_mlx.metal_kernels.dispatch import OURS, AttentionPath, CutOvers, Work, choose_path
from sgl_mlx.metal_kernels.fallback import KernelsWithFallback
from sgl_mlx.runtime.attention import cpu_math
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.kernels import (
    KernelChunks,
    KernelEpoch,
    Kernels,
    pool_fits,
    rows_fit,
)
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.spans import MIN_SHARED, shared_spans
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

DecodeEpoch = Epoch | KernelEpoch


class AttentionPaths:
    """Chooser of the attention of each step.

    Args:
        kernels: None if there are none for this machine.
        cut_overs: sizes at which Metal's kernels and MLX's fused attention take over from each
            other; the CPU's kernels are always faster than plain MLX.
        share: attend a prefix that several rows have in common once for all of them.
    """

    def __init__(
        self,
        pool: KVPool,
        kernels: Kernels | None = None,
        cut_overs: CutOvers | None = None,
        share: bool = True,
    ) -> None:
        self.pool = pool
        self._min_shared = MIN_SHARED if share else sys.maxsize
        self.kernels = kernels if kernels is not None and pool_fits(pool, kernels) else None
        self._cut_overs = cut_overs or CutOvers()
        self._softcap = next((x.softcap for x in pool.layers if x.softcap is not None), None)

    @property
    def copies(self) -> bool:
        """True if decoding several rows may copy their prefixes out of the pool."""
        if isinstance(self.kernels, KernelsWithFallback):
            return self._cut_overs.decode_from_rows > 1
        return self.kernels is None

    def epoch(
        self, rows: Sequence[Row], width: int, before: DecodeEpoch | None = None
    ) -> DecodeEpoch:
        """Attention of up to `width` decode steps of sorted rows.

        Args:
            before: the epoch that has just ended; its buffers are used again for the same rows.
        """
        if kernels := self._kernels_for(rows, "decode"):
            return KernelEpoch(self.pool, rows, width, kernels)
        if isinstance(before, Epoch) and before.go_on(rows, width):
            return before
        return Epoch(self.pool, rows, width, self._min_shared)

    def chunks(self, rows: Sequence[Row]) -> Chunks | SdpaChunks | KernelChunks:
        """Attention of sorted rows of several tokens each."""
        if kernels := self._kernels_for(rows, "extend"):
            return KernelChunks(self.pool, rows, kernels)
        if cpu_math.on_cpu() or self._softcap is not None:
            return Chunks(self.pool, rows, self._min_shared)
        return SdpaChunks(self.pool, rows)

    def _kernels_for(
        self, rows: Sequence[Row], work: Literal["extend", "decode"]
    ) -> Kernels | None:
        if self.kernels is None or not rows_fit(rows):
            return None
        if isinstance(self.kernels, KernelsWithFallback) and (
            self.kernels.failed(work) or self._path(rows, work) not in OURS
        ):
            return None
        return self.kernels

    def _path(self, rows: Sequence[Row], work: Literal["extend", "decode"]) -> AttentionPath:
        decode = work == "decode"
        shape = Work(
            rows=len(rows),
            tokens=1 if decode else max(len(row.tokens) for row in rows),
            dim=self.pool.layers[0].key_dim,
            dtype=self.pool.dtype,
            contiguous=all(_is_run(row.prefix) for row in rows),
            shared=decode and bool(shared_spans(rows)[0]),
            window=next((x.window for x in self.pool.layers if x.window), None),
            softcap=self._softcap,
            quantized=self.pool.layer(0).quantized,
            prefix=max(len(row.prefix) for row in rows),
        )
        return choose_path(shape, self._cut_overs)


def _is_run(slots: Sequence[int]) -> bool:
    return not slots or SlotIndex(slots).run is not None
