"""The arguments of the two attentions, written once for kernels, reference, checks and CPU.

An operation over the pool takes one of these and nothing else, so a new argument is a new field.
D is the width of queries and keys, V that of values; they are the same in most models.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer


class ExtendInputs(NamedTuple):
    """Prefill chunks: T new tokens, each over its row's prefix and, causally, over the row.

    Args:
        q: `(T, Hq, D)`.
        keys: `(T, Hkv, D)` of the new tokens, not yet in the pool.
        values: `(T, Hkv, V)`.
    """

    q: mx.array
    keys: mx.array
    values: mx.array
    pool: PoolLayer
    plan: ExtendPlan
    options: AttentionOptions


class DecodeInputs(NamedTuple):
    """Decode: the last `plan.tokens` tokens of each row over everything up to themselves.

    Args:
        q: `(rows * tokens, Hq, D)`, one row's tokens after another's.
        tail_keys: `(rows, width, Hkv, D)`: keys not yet in the pool.
        tail_values: `(rows, width, Hkv, V)`.
        tail_length: columns of the tail in use; the last `plan.tokens` belong to the queries.
    """

    q: mx.array
    tail_keys: mx.array
    tail_values: mx.array
    tail_length: int
    pool: PoolLayer
    plan: DecodePlan
    options: AttentionOptions
