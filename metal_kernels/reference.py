"""Reference implementation of the kernels in plain MLX, to check them against.

The functions are those of `ops` without the `kernels` argument. They compute one sequence at a time
and return float32: the right result before it is rounded to the model's dtype. They are slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from sgl_mlx.metal_kernels.shapes import check_decode, check_extend


def extend_attention(inputs: ExtendInputs) -> mx.array:
    """Compute `ops.extend_attention`, slowly; returns `(T, Hq, V)` in float32."""
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
    """Compute `ops.decode_attention`, slowly; returns `(rows * tokens, Hq, V)` in float32."""
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
    """Compute causal attention of one sequence's last tokens over all its keys.

    Args:
        q: `(tokens, heads, dim)`, of the last tokens.
        keys: `(length, kv_heads, dim)`, of the whole sequence.
        values: `(length, kv_heads, value_dim)`.

    Returns:
        `(tokens, heads, value_dim)` in float32.
    """
    kv_heads = keys.shape[1]
    sinks = [None] * kv_heads if options.sinks is None else mx.split(options.sinks, kv_heads)
    grouped = mx.split(q, kv_heads, axis=1)
    outs = [
        _one_kv_head(queries, keys[:, i], values[:, i], options._replace(sinks=sink))
        for i, (queries, sink) in enumerate(zip(grouped, sinks, strict=True))
    ]
    return mx.concatenate(outs, axis=1)


def _one_kv_head(
    q: mx.array, keys: mx.array, values: mx.array, options: AttentionOptions
) -> mx.array:
    """Attend queries `(tokens, group, dim)` to one KV head's keys and values `(length, dim)`.

    The sinks in `options` are those of this KV head's group.
    """
    q, keys, values = (x.astype(mx.float32) for x in (q, keys, values))
    scores = _dot(q[:, :, None], keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * mx.tanh(scores / options.softcap)
    tokens, length = len(q), len(keys)
    distance = mx.arange(length - tokens, length)[:, None, None] - mx.arange(length)
    seen = distance >= 0
    if options.window is not None:
        seen = seen & (distance < options.window)
    scores = mx.where(seen, scores, -mx.inf)
    if options.sinks is not None:
        column = mx.broadcast_to(options.sinks.astype(mx.float32)[:, None], (*q.shape[:2], 1))
        scores = mx.concatenate([scores, column], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., :length]
    return _dot(weights[:, :, None], values.T)


def _dot(left: mx.array, right: mx.array) -> mx.array:
    """Sum the products over the last axis in float32.

    A matrix product would not do: GPUs from M5 on round its factors to TF32 (10 mantissa bits).
    """
    return (left * right).sum(-1)


def _with_prefix(
    pool: PoolLayer, prefix: Sequence[int], keys: mx.array, values: mx.array
) -> tuple[mx.array, mx.array]:
    if not prefix:
        return keys, values
    k, v = pool.gather(mx.array(list(prefix), mx.int32), keys.dtype, values.shape[-1])
    return mx.concatenate([k, keys]), mx.concatenate([v, values])
