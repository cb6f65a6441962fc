"""Choice of a step's attention: plain MLX, MLX's fused kernel, or our kernels."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from sgl_mlx.metal_kernels.dispatch import OURS, AttentionPath, CutOvers, Work, choose_path
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.shapes import WIDTHS
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.models import cpu_math
from sgl_mlx.models.adapter import LayerAttention, LayerShape
from sgl_mlx.runtime.attention.chosen import ChosenEpoch
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.kernels import (
    KernelChunks,
    KernelEpoch,
    Kernels,
    pool_fits,
    rows_fit,
)
from sgl_mlx.runtime.attention.latent import LatentChunks
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.spans import MIN_SHARED, shared_spans
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

DecodeEpoch = Epoch | KernelEpoch

KINDS: tuple[Literal["extend"], Literal["decode"]] = "extend", "decode"


class AttentionPaths:
    """Factory of each step's attention: plain MLX, MLX's fused kernel, or our kernels.

    Args:
        kernels: our kernels; None if this machine has none. Ignored if they cannot read the pool.
        cut_overs: sizes at which Metal's kernels and MLX's fused attention take over from each
            other. The CPU's kernels are used whenever they fit.
        share: True attends a prefix that several rows share only once for all these rows.
        cases: for each layer, the kernel specialisations that the model needs (`layer_cases`).
    """

    def __init__(
        self,
        pool: KVPool,
        kernels: Kernels | None = None,
        cut_overs: CutOvers | None = None,
        share: bool = True,
        cases: Mapping[int, Collection[Case]] | None = None,
    ) -> None:
        self.pool = pool
        self._min_shared = MIN_SHARED if share else sys.maxsize
        self.kernels = kernels if kernels is not None and pool_fits(pool, kernels) else None
        self._cut_overs = cut_overs or CutOvers()
        self._cases = cases or {}
        self._top_keys = min((x.top_keys for x in pool.layers if x.top_keys), default=None)
        self._softcap = next((x.softcap for x in pool.layers if x.softcap is not None), None)

    @property
    def copies(self) -> bool:
        """True if decoding several rows may copy their prefixes out of the pool."""
        if self._top_keys is not None:
            return True
        if isinstance(self.kernels, TestedKernels):
            every = range(len(self.pool.layers))
            return self._cut_overs.decode_from_rows > 1 or not all(map(self._has_kernel, every))
        return self.kernels is None

    def epoch(
        self, rows: Sequence[Row], width: int, before: DecodeEpoch | None = None
    ) -> DecodeEpoch:
        """Open a decode epoch: the attention of up to `width` steps of the same rows.

        Args:
            rows: sorted by their prefix slots.
            before: the epoch that has just ended. If its rows continue and both epochs are in
                plain MLX, its buffers are used again and `before` itself is returned.
        """

        if self._top_keys is not None and any(
            len(row.prefix) + width > self._top_keys for row in rows
        ):
            if isinstance(before, ChosenEpoch) and before.go_on(rows, width):
                return before
            return ChosenEpoch(self.pool, rows, width)

        def plain() -> Epoch:
            return Epoch(self.pool, rows, width, self._min_shared)

        layers = self._layers_of_kernels(rows, "decode")
        if self.kernels is not None and layers:
            return KernelEpoch(self.pool, rows, width, self.kernels, layers, self._cut_overs, plain)
        if type(before) is Epoch and before.go_on(rows, width):
            return before
        return plain()

    def chunks(self, rows: Sequence[Row]) -> Chunks | SdpaChunks | KernelChunks:
        """Make the attention of prefill chunks: of rows that have several new tokens each.

        Args:
            rows: sorted by their prefix slots.
        """

        def plain() -> Chunks | SdpaChunks:
            if cpu_math.on_cpu() or self._softcap is not None:
                return Chunks(self.pool, rows, self._min_shared)
            return SdpaChunks(self.pool, rows)

        layers = self._layers_of_kernels(rows, "extend")
        if self.kernels is None or not layers:
            return plain()
        return KernelChunks(self.pool, rows, self.kernels, layers, plain)

    def latent_chunks(self, rows: Sequence[Row]) -> LatentChunks:
        """Make the attention of prefill chunks in MLA layers, which store latent entries."""
        return LatentChunks(self.pool, rows, self.chunks, self._min_shared)

    def _layers_of_kernels(
        self, rows: Sequence[Row], work: Literal["extend", "decode"]
    ) -> Collection[int]:
        """List the layers that our kernels attend in this step."""
        every = range(len(self.pool.layers))
        if self.kernels is None or not rows_fit(rows):
            return ()
        if not isinstance(self.kernels, TestedKernels):
            return every
        step = self._describe(rows, work)
        path = {shape: self._path(step, shape) for shape in set(self.pool.layers)}
        failed = {i for i in every if self.kernels.failed(self._layer_cases(i, work))}
        return {i for i in every if path[self.pool.layers[i]] in OURS} - failed

    def _has_kernel(self, layer: int) -> bool:
        """True if Metal's decode kernel takes the layer's widths and has not failed its test."""
        assert isinstance(self.kernels, TestedKernels)
        shape = self.pool.layers[layer]
        fits = (shape.key_dim, shape.value_dim) in WIDTHS
        return fits and not self.kernels.failed(self._layer_cases(layer, "decode"))

    def _layer_cases(self, layer: int, work: Literal["extend", "decode"]) -> list[Case]:
        return [case for case in self._cases.get(layer, ()) if case.work == work]

    def _path(self, step: Work, layer: LayerShape) -> AttentionPath:
        shape = replace(
            step,
            dim=layer.key_dim,
            value_dim=layer.value_dim,
            window=layer.window,
            softcap=layer.softcap,
        )
        return choose_path(shape, self._cut_overs)

    def _describe(self, rows: Sequence[Row], work: Literal["extend", "decode"]) -> Work:
        decode = work == "decode"
        return Work(
            rows=len(rows),
            tokens=1 if decode else max(len(row.tokens) for row in rows),
            dim=self.pool.layers[0].key_dim,
            dtype=self.pool.dtype,
            contiguous=all(_is_run(row.prefix) for row in rows),
            shared=decode and bool(shared_spans(rows)[0]),
            quantized=self.pool.layer(0).quantized,
            prefix=max(len(row.prefix) for row in rows),
        )


def layer_cases(attentions: Sequence[LayerAttention], pool: KVPool) -> dict[int, list[Case]]:
    """Map each layer to the kernel specialisations that it needs.

    Layers whose head dims the kernels do not support are left out.
    """
    cases: dict[int, list[Case]] = {}
    for layer, heads, options in attentions:
        shape = pool.layers[layer]
        if (shape.key_dim, shape.value_dim) in WIDTHS:
            cases.setdefault(layer, []).extend(
                Case.of_pool(
                    work, heads, pool.layer(layer), shape.value_dim, pool.dtype
                ).with_options(options)
                for work in KINDS
            )
    return cases


def _is_run(slots: Sequence[int]) -> bool:
    return not slots or SlotIndex(slots).run is not None
