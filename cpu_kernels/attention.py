"""Attention over the pool by the CPU kernels: the calls of `metal_kernels.trusted`."""

from __future__ import annotations

from types import ModuleType

import mlx.core as mx

from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan
from sgl_mlx.metal_kernels.pool import Options, PoolLayer

LANES = 16


def fits(dim: int, value_dim: int, dtype: mx.Dtype) -> bool:
    """Whether the kernels can read keys and values of these widths in this dtype."""
    return dim == value_dim and dim % LANES == 0 and dtype == mx.float32


class CpuAttention:
    """The two attentions; float32, over pools in float32 or 8 bits."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    def extend(
        self,
        q: mx.array,
        keys: mx.array,
        values: mx.array,
        pool: PoolLayer,
        plan: ExtendPlan,
        options: Options,
    ) -> mx.array:
        """See `metal_kernels.ops.extend_attention`."""
        rows = len(plan.rows)
        out: mx.array = self._kernels.extend_attention(
            q, keys, values, *pool, plan.slots, plan.table, rows, *_plain(options)
        )
        return out

    def decode(
        self,
        q: mx.array,
        tail_keys: mx.array,
        tail_values: mx.array,
        tail_length: int,
        pool: PoolLayer,
        plan: DecodePlan,
        options: Options,
    ) -> mx.array:
        """See `metal_kernels.ops.decode_attention`."""
        tail = tail_keys, tail_values, tail_length
        tables = plan.slots, plan.table, plan.span_table, len(plan.spans)
        out: mx.array = self._kernels.decode_attention(
            q, *tail, *pool, *tables, plan.tokens, *_plain(options)
        )
        return out


def _plain(options: Options) -> tuple[float, int, float, mx.array | None]:
    """As the kernels take them: 0 stands for none."""
    sinks = None if options.sinks is None else options.sinks.astype(mx.float32)
    return options.scale, options.window or 0, options.softcap or 0.0, sinks
