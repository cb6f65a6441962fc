"""The reference against a softmax written out token by token in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer, dequantize, quantize
from tests.metal_kernels.cases import Call, Case, assert_close, decode_call, extend_call

CASES = [
    Case(dtype=mx.float32),
    Case(dtype=mx.float32, group=3, kv_heads=2, window=5),
    Case(dtype=mx.float32, group=4, softcap=2.0),
    Case(dtype=mx.float32, group=3, sinks=True),
    Case(dtype=mx.float32, group=8, quantized=True),
    Case(dtype=mx.float32, group=2, sinks=True, softcap=5.0, window=9, loud=True),
    Case(dtype=mx.float32, dim=192, value_dim=128, group=3, kv_heads=2, sinks=True),
]


def naive(q: mx.array, keys: mx.array, values: mx.array, options: AttentionOptions) -> np.ndarray:
    """A token and a head at a time; the queries are the last tokens of `keys (n, heads, dim)`."""
    q64, k64, v64 = (np.array(x, np.float64) for x in (q, keys, values))
    tokens, heads, _ = q64.shape
    group = heads // k64.shape[1]
    out = np.zeros((tokens, heads, v64.shape[-1]))
    for i in range(tokens):
        position = len(k64) - tokens + i
        first = 0 if options.window is None else max(0, position + 1 - options.window)
        for head in range(heads):
            seen = k64[first : position + 1, head // group]
            scores = [float(q64[i, head] @ key) * options.scale for key in seen]
            if options.softcap is not None:
                scores = [options.softcap * np.tanh(s / options.softcap) for s in scores]
            weights = np.exp(scores)
            sink = 0.0 if options.sinks is None else np.exp(float(options.sinks[head].item()))
            mixed = weights @ v64[first : position + 1, head // group]
            out[i, head] = mixed / (weights.sum() + sink)
    return out


def stored(pool: PoolLayer, slots: Sequence[int]) -> tuple[mx.array, mx.array]:
    """Read keys and values of these slots, one by one."""
    both = []
    pairs = (pool.keys, pool.key_scales), (pool.values, pool.value_scales)
    for levels, scales in pairs:
        wide = levels.astype(mx.float32)
        if scales is not None:
            wide = wide * scales.astype(mx.float32)[..., None]
        both.append(mx.stack([wide[s] for s in slots]) if slots else wide[:0])
    return both[0], both[1]


def check(
    call: Call, prefixes: Sequence[Sequence[int]], new: Sequence[tuple[mx.array, ...]]
) -> None:
    """`new`: queries, keys and values of each row beyond its prefix."""
    arguments = call.arguments
    want = []
    for prefix, (q, keys, values) in zip(prefixes, new, strict=True):
        pool_keys, pool_values = stored(arguments["pool"], prefix)
        k, v = mx.concatenate([pool_keys, keys]), mx.concatenate([pool_values, values])
        want.append(naive(q, k, v, arguments["options"]))
    got = call.reference()
    assert_close(got, mx.array(np.concatenate(want), mx.float32), mx.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extend_attention_is_the_softmax_over_prefix_and_new_tokens(case: Case) -> None:
    call = extend_call(case, [(7, 4), (0, 3), (12, 1)])
    plan = call.arguments["plan"]
    new, first = [], 0
    for row in plan.rows:
        mine = slice(first, first + row.tokens)
        new.append(tuple(call.arguments[x][mine] for x in ("q", "keys", "values")))
        first += row.tokens
    check(call, [row.prefix for row in plan.rows], new)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode_attention_is_the_softmax_over_spans_private_prefix_and_tail(
    case: Case, tokens: int
) -> None:
    tree = [(0, 4, 0, 5), (1, 4, 5, 3), (2, 4, 8, 4)]
    call = decode_call(case, [2, 0, 6, 1, 9], 4, tree, tokens=tokens)
    plan, arguments = call.arguments["plan"], call.arguments
    a, b, c = (list(span.slots) for span in plan.spans)
    shared = [a, a + b, a + b + c, a + b + c, []]
    new = [
        (
            arguments["q"][i * tokens : (i + 1) * tokens],
            arguments["tail_keys"][i, :4],
            arguments["tail_values"][i, :4],
        )
        for i in range(5)
    ]
    check(call, [[*s, *own] for s, own in zip(shared, plan.rows, strict=True)], new)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_pool_of_8_bits_is_within_half_a_step_of_what_was_written(dtype: mx.Dtype) -> None:
    x = Case(dim=128, dtype=dtype, kv_heads=3).keys(np.random.default_rng(0), 20)
    levels, scales = quantize(x)
    assert (levels.dtype, scales.dtype, scales.shape) == (mx.int8, mx.float16, (20, 3))
    back = dequantize(levels, scales, mx.float32)
    steps = mx.abs(back - x.astype(mx.float32)) / scales.astype(mx.float32)[..., None]
    assert mx.max(steps).item() <= 0.5 * (1 + 127 * 2**-10)  # the scale itself is rounded


def test_quantized_zeros_are_zeros() -> None:
    levels, scales = quantize(mx.zeros((2, 1, 64)))
    assert not mx.any(levels).item()
    assert not mx.any(scales).item()


def test_half_precision_is_widened_before_anything_is_computed() -> None:
    call = extend_call(replace(CASES[0], dtype=mx.float16), [(33, 5)])
    wide = {
        k: x.astype(mx.float32) if isinstance(x, mx.array) else x for k, x in call.arguments.items()
    }
    pool = call.arguments["pool"]
    wide["pool"] = PoolLayer(pool.keys.astype(mx.float32), pool.values.astype(mx.float32))
    got = call.reference()
    assert got.dtype == mx.float32
    assert mx.array_equal(got, Call(call.op, wide).reference()).item()
