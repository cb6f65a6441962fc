"""Which attention a step takes: plain MLX, MLX's fused kernel, or kernels of our own."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_mlx.metal_kernels.dispatch import CutOvers, Path, StepShape, choose
from sgl_mlx.metal_kernels.trusted import TrustedKernels
from sgl_mlx.runtime import cpu
from sgl_mlx.runtime.chunks import Chunks
from sgl_mlx.runtime.epoch import Epoch
from sgl_mlx.runtime.kernel_steps import KernelChunks, KernelEpoch, pool_fits, rows_fit
from sgl_mlx.runtime.kv import KVPool, SlotIndex
from sgl_mlx.runtime.layout import shared_spans
from sgl_mlx.runtime.plan import Row
from sgl_mlx.runtime.sdpa import SdpaChunks

DecodeEpoch = Epoch | KernelEpoch


class AttentionPaths:
    """See the module.

    Args:
        kernels: None where there are none to be had.
        cut_overs: where kernels and MLX's fused attention take turns.
    """

    def __init__(
        self,
        pool: KVPool,
        kernels: TrustedKernels | None = None,
        cut_overs: CutOvers | None = None,
    ) -> None:
        self.pool = pool
        self.kernels = kernels if pool_fits(pool) else None
        self._cut_overs = cut_overs or CutOvers()

    def epoch(self, rows: Sequence[Row], width: int) -> DecodeEpoch:
        """Attention of up to `width` decode steps of sorted rows."""
        if self.kernels is not None and self._choose(rows, new=1) is Path.KERNEL:
            return KernelEpoch(self.pool, rows, width, self.kernels)
        return Epoch(self.pool, rows, width)

    def chunks(self, rows: Sequence[Row]) -> Chunks | SdpaChunks | KernelChunks:
        """Attention of sorted rows of several tokens each."""
        longest = max(len(row.tokens) for row in rows)
        if self.kernels is not None and self._choose(rows, longest) is Path.KERNEL:
            return KernelChunks(self.pool, rows, self.kernels)
        return Chunks(self.pool, rows) if cpu.on_cpu() else SdpaChunks(self.pool, rows)

    def _choose(self, rows: Sequence[Row], new: int) -> Path:
        assert self.kernels is not None
        if not rows_fit(rows) or self.kernels.failed("decode" if new == 1 else "extend"):
            return Path.DENSE
        prefix = max(len(row.prefix) for row in rows)
        run = len(rows) == 1 and _is_run(rows[0].prefix)
        shared = new == 1 and bool(shared_spans(rows)[0])
        return choose(StepShape(new, prefix, len(rows), run, shared), self._cut_overs)


def _is_run(slots: Sequence[int]) -> bool:
    return not slots or SlotIndex(slots).run is not None
