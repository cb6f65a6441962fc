"""Attention over the KV pool by the CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import mlx.core as mx

from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.pool import AttentionOptions

LANES = 16


def fits(dim: int, value_dim: int, dtype: mx.Dtype) -> bool:
    """Return True if the CPU kernels support keys and values of these widths in this dtype."""
    return dim % LANES == 0 and value_dim % LANES == 0 and dtype == mx.float32


class CpuAttention:
    """Extend and decode attention in float32, over pools in float32 or 8 bits.

    Has the methods `takes`, `extend` and `decoder` of `metal_kernels.tested.TestedKernels`.
    """

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    def takes(self, inputs: ExtendInputs | DecodeInputs) -> bool:
        """Return True: `fits` was checked for every layer of the pool, so all inputs are fine."""
        return True

    def extend(self, inputs: ExtendInputs) -> mx.array:
        """Compute what `metal_kernels.ops.extend_attention` does: attention of prefill chunks."""
        q, keys, values, pool, plan, options = inputs
        rows = len(plan.rows)
        out: mx.array = self._kernels.extend_attention(
            q, keys, values, *pool, plan.slots, plan.table, rows, *_plain(options)
        )
        return out

    def decoder(self, inputs: DecodeInputs) -> Callable[[DecodeInputs], mx.array]:
        """Return `decode`, which takes the inputs of any step; there is nothing to prepare."""
        return self.decode

    def decode(self, inputs: DecodeInputs) -> mx.array:
        """Compute what `metal_kernels.ops.decode_attention` does: attention of a decode step."""
        q, tail_keys, tail_values, tail_length, pool, plan, options = inputs
        tail = tail_keys, tail_values, tail_length
        tables = plan.slots, plan.table, plan.span_table, len(plan.spans)
        out: mx.array = self._kernels.decode_attention(
            q, *tail, *pool, *tables, plan.tokens, *_plain(options)
        )
        return out


def _plain(options: AttentionOptions) -> tuple[float, int, float, mx.array | None]:
    """Convert options to arguments of the C++ functions: no window or no soft-cap becomes 0."""
    sinks = None if options.sinks is None else options.sinks.astype(mx.float32)
    return options.scale, options.window or 0, options.softcap or 0.0, sinks
