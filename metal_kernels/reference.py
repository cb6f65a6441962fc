"""The kernels' results in plain MLX, one row at a time: the definition of right.

The functions are those of `ops`, without the `kernels` argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from sgl_mlx.metal_kernels.shapes import check_decode, check_extend


def extend_attention(inputs: ExtendInputs) -> mx.array:
    """See `ops.extend_attention`."""
    check_extend(inputs)
    q, keys, values, pool, plan, options = inputs
    outs, first = [], 0
    for row in plan.rows:
        mine = slice(first, first + row.tokens)
        k, v = _with_prefix(pool, row.prefix, keys[mine], values[mine])
        outs.append(softmax_attention(q[mine], k, v, options))
        first += row.tokens
    return mx.concatenate(outs)


def decode_attention(inputs: DecodeInputs) -> mx.array:
    """See `ops.decode_attention`."""
    check_decode(inputs)
    q, tail_keys, tail_values, tail_length, pool, plan, options = inputs
    outs = []
    for row, private in enumerate(plan.rows):
        shared = [s for span in plan.spans if span.first <= row < span.last for s in span.slots]
        tail = tail_keys[row, :tail_length], tail_values[row, :tail_length]
        k, v = _with_prefix(pool, [*shared, *private], *tail)
        mine = slice(row * plan.tokens, (row + 1) * plan.tokens)
        outs.append(softmax_attention(q[mine], k, v, options))
    return mx.concatenate(outs)


def softmax_attention(
    q: mx.array, keys: mx.array, values: mx.array, options: AttentionOptions
) -> mx.array:
    """Attend the last `len(q)` of these tokens to those before and to themselves, in float32.

    Args:
        q: `(tokens, heads, dim)`.
        keys, values: `(length, kv_heads, dim)`.
    """
    tokens, heads, dim = q.shape
    length, kv_heads, _ = keys.shape
    grouped = q.astype(mx.float32).reshape(tokens, kv_heads, heads // kv_heads, dim)
    k, v = keys.astype(mx.float32), values.astype(mx.float32)
    scores = mx.einsum("thgd,lhd->hgtl", grouped, k) * options.scale
    if options.softcap is not None:
        scores = options.softcap * mx.tanh(scores / options.softcap)
    distance = mx.arange(length - tokens, length)[:, None] - mx.arange(length)
    seen = distance >= 0
    if options.window is not None:
        seen = seen & (distance < options.window)
    scores = mx.where(seen, scores, -mx.inf)
    if options.sinks is not None:
        sinks = options.sinks.astype(mx.float32).reshape(kv_heads, -1, 1, 1)
        column = mx.broadcast_to(sinks, (*scores.shape[:3], 1))
        scores = mx.concatenate([scores, column], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., :length]
    return mx.einsum("hgtl,lhd->thgd", weights, v).reshape(q.shape).astype(q.dtype)


def _with_prefix(
    pool: PoolLayer, prefix: Sequence[int], keys: mx.array, values: mx.array
) -> tuple[mx.array, mx.array]:
    if not prefix:
        return keys, values
    k, v = pool.gather(mx.array(list(prefix), mx.int32), keys.dtype)
    return mx.concatenate([k, keys]), mx.concatenate([v, values])
