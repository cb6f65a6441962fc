"""Arguments of extend and decode attention, shared by Metal kernels, CPU kernels and reference.

In shapes, Hq is the number of query heads and Hkv of KV heads. D is the width of queries and keys,
V the width of values; they are the same in most models.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer


class ExtendInputs(NamedTuple):
    """Arguments of extend attention: prefill chunks with T new tokens in total.

    Each token attends to its sequence's prefix in the pool and, causally, to its chunk.

    Args:
        q: `(T, Hq, D)`.
        keys: `(T, Hkv, D)` of the new tokens, which are not yet in the pool.
        values: `(T, Hkv, V)` of the new tokens.
        pool: the layer's KV pool, which holds the prefixes.
        plan: the sequences' prefixes and numbers of tokens.
    """

    q: mx.array
    keys: mx.array
    values: mx.array
    pool: PoolLayer
    plan: ExtendPlan
    options: AttentionOptions


class DecodeInputs(NamedTuple):
    """Arguments of decode attention: `plan.tokens` new tokens of each sequence (row).

    Each token attends to its row's prefix in the pool and to the row's tail up to itself.

    Args:
        q: `(rows * tokens, Hq, D)`, one row's tokens after another's.
        tail_keys: `(rows, width, Hkv, D)`: keys that are not yet in the pool.
        tail_values: `(rows, width, Hkv, V)`: values that are not yet in the pool.
        tail_length: number of tail columns in use; the last `plan.tokens` are the new tokens.
        pool: the layer's KV pool, which holds the prefixes.
        plan: the rows' prefixes.
    """

    q: mx.array
    tail_keys: mx.array
    tail_values: mx.array
    tail_length: int
    pool: PoolLayer
    plan: DecodePlan
    options: AttentionOptions
