"""What the kernels compute, in plain MLX: the definition of right, a row and its keys at a time.

The functions have the signatures of `ops`, less the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, int_table
from sgl_mlx.metal_kernels.pool import Options, PoolLayer, quantize
from sgl_mlx.metal_kernels.shapes import check_decode, check_extend, check_flush


def extend_attention(
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    pool: PoolLayer,
    plan: ExtendPlan,
    options: Options,
) -> mx.array:
    """See `ops.extend_attention`."""
    check_extend(q, keys, values, pool, plan, options)
    outs, first = [], 0
    for row in plan.rows:
        mine = slice(first, first + row.tokens)
        k, v = _with_prefix(pool, row.prefix, keys[mine], values[mine])
        outs.append(softmax_attention(q[mine], k, v, options))
        first += row.tokens
    return mx.concatenate(outs)


def decode_attention(
    q: mx.array,
    tail_keys: mx.array,
    tail_values: mx.array,
    tail_length: int,
    pool: PoolLayer,
    plan: DecodePlan,
    options: Options,
) -> mx.array:
    """See `ops.decode_attention`."""
    check_decode(q, tail_keys, tail_values, tail_length, pool, plan, options)
    outs = []
    for row, private in enumerate(plan.rows):
        shared = [s for span in plan.spans if span.first <= row < span.last for s in span.slots]
        tail = tail_keys[row, :tail_length], tail_values[row, :tail_length]
        k, v = _with_prefix(pool, [*shared, *private], *tail)
        mine = slice(row * plan.tokens, (row + 1) * plan.tokens)
        outs.append(softmax_attention(q[mine], k, v, options))
    return mx.concatenate(outs)


def flush_pool(
    pool: PoolLayer, keys: mx.array, values: mx.array, slots: mx.array, previous: mx.array
) -> tuple[PoolLayer, mx.array]:
    """What the pool holds after `ops.flush_pool`, and that call's token."""
    shapes = check_flush(pool, keys, values, slots, previous)
    where = slots[: shapes["T"]]
    new: tuple[mx.array | None, ...] = (keys, values, None, None)
    if pool.quantized:
        (key_levels, key_scales), (value_levels, value_scales) = quantize(keys), quantize(values)
        new = key_levels, value_levels, key_scales, value_scales
    written = (_put(old, where, x) for old, x in zip(pool, new, strict=True))
    return PoolLayer(*written), previous + int_table([shapes["T"]] * previous.size)  # type: ignore[arg-type]


def softmax_attention(q: mx.array, keys: mx.array, values: mx.array, options: Options) -> mx.array:
    """The last `len(q)` of these tokens attend to those before and to themselves, in float32.

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


def _put(old: mx.array | None, where: mx.array, new: mx.array | None) -> mx.array | None:
    if old is None or new is None:
        return old
    copy = old[:]
    copy[where] = new.astype(old.dtype)
    return copy
