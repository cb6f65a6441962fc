"""Attention put together from partials, against softmax over all keys at once."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.models import cpu_math
from sgl_mlx.runtime.attention import softmax as at
from tests.runtime import plain

DIM = 8
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}

tokens = st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 129, 255, 256, 257]))
groups = st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 4)])
windows = st.one_of(st.none(), st.sampled_from([1, 5, 127, 128, 129, 400]))
examples = settings(max_examples=40, deadline=None)


def draw(seed: int, count: int, heads: int) -> Any:
    return np.random.default_rng(seed).normal(0, 1.5, (count, heads, DIM)).astype(np.float32)


def heads_first(x: Any) -> mx.array:
    return mx.array(x).swapaxes(0, 1)


@examples
@given(tokens, groups, windows, st.booleans())
def test_causal_tiles_equal_softmax_over_all_keys(
    n: int, heads: tuple[int, int], window: int | None, with_sinks: bool
) -> None:
    kv_heads, group = heads
    q, k, v = draw(n, n, kv_heads * group), draw(n + 1, n, kv_heads), draw(n + 2, n, kv_heads)
    sinks = np.linspace(-3, 3, kv_heads * group).astype(np.float32) if with_sinks else None
    part = at.attend_causal(
        at.group_heads(mx.array(q), kv_heads, 1.0),
        heads_first(k),
        heads_first(v),
        window,
        at.causal_bias,
    )
    found = part.normalised(None if sinks is None else mx.array(sinks))
    seen = plain.causal(range(n), range(n), window)
    np.testing.assert_allclose(np.array(found), plain.attention(q, k, v, seen, sinks), **CLOSE)


@examples
@given(tokens, groups, st.lists(st.integers(1, 140), min_size=1, max_size=4), windows)
def test_partials_over_pieces_of_a_prefix_merge_to_the_whole(
    n: int, heads: tuple[int, int], pieces: list[int], window: int | None
) -> None:
    kv_heads, group = heads
    past = sum(pieces)
    length = past + n
    q = draw(1, n, kv_heads * group)
    k, v = draw(2, length, kv_heads), draw(3, length, kv_heads)
    grouped = at.group_heads(mx.array(q), kv_heads, 1.0)
    keys, values = heads_first(k), heads_first(v)
    own = keys[:, past:], values[:, past:]
    total = at.attend_causal(grouped, *own, window, at.causal_bias)
    start = 0
    for piece in pieces:
        mine = slice(start, start + piece)
        bias = at.position_bias(mx.arange(past, length), mx.arange(mine.start, mine.stop), window)
        seen = at.attend_tiled(grouped, keys[:, mine], values[:, mine], bias)
        total = at.merge(seen, total)
        start += piece
    expected = plain.attention(q, k, v, plain.causal(range(past, length), range(length), window))
    np.testing.assert_allclose(np.array(total.normalised()), expected, **CLOSE)


@examples
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=4))
def test_parts_spread_over_all_tokens_reach_those_they_belong_to_alone(
    gaps_and_lengths: list[tuple[int, int]],
) -> None:
    owners: list[int] = []
    firsts = []
    for part, (gap, length) in enumerate(gaps_and_lengths):
        firsts.append(len(owners) + gap)
        owners += [-1] * gap + [part] * length
    n = len(owners) + 2
    q, k, v = draw(4, n, 2), draw(5, 4 + 3 * len(firsts), 2), draw(6, 4 + 3 * len(firsts), 2)
    grouped, keys, values = at.group_heads(mx.array(q), 2, 1.0), heads_first(k), heads_first(v)
    parts = []
    for i, (first, (_, length)) in enumerate(zip(firsts, gaps_and_lengths, strict=True)):
        mine = slice(4 + 3 * i, 7 + 3 * i)
        parts.append(at.attend(grouped[:, first : first + length], keys[:, mine], values[:, mine]))
    whole = at.attend(grouped, keys[:, :4], values[:, :4])
    merged = at.merge(whole, at.spread(parts, firsts, n))
    key_owner = np.array([-2] * 4 + [i for i in range(len(parts)) for _ in range(3)])
    seen = (key_owner == -2) | (key_owner == np.array([*owners, -1, -1])[:, None])
    np.testing.assert_allclose(
        np.array(merged.normalised()), plain.attention(q, k, v, seen), **CLOSE
    )


def test_a_part_of_which_nothing_is_seen_changes_nothing() -> None:
    q, k, v = draw(7, 3, 2), draw(8, 6, 2), draw(9, 6, 2)
    grouped = at.group_heads(mx.array(q), 2, 1.0)
    seen = at.attend(grouped, heads_first(k), heads_first(v))
    hidden = at.attend(grouped, heads_first(k), heads_first(v), mx.full((3, 6), at.MASKED))
    for merged in (at.merge(seen, hidden), at.merge(hidden, seen)):
        found, expected = np.array(merged.normalised()), np.array(seen.normalised())
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("length", [1, 7, 16, 24, 80, 1036])
def test_peaks_are_the_largest_of_each_row(length: int) -> None:
    x = np.random.default_rng(length).normal(size=(3, 5, length)).astype(np.float32)
    found = np.array(cpu_math.peaks(mx.array(x)))
    np.testing.assert_array_equal(found, x.max(axis=-1, keepdims=True))


SIZES = pytest.mark.parametrize("size", [1 << 8, 1 << 13, 1 << 17], ids=["few", "some", "many"])


def error_of_exp(lowest: float, size: int) -> float:
    """The largest relative error of the fast exp on `[lowest, 0]`."""
    x = np.linspace(lowest, 0, size, dtype=np.float32)
    found = np.array(cpu_math.exp_minus(mx.array(x), mx.array(0.0)), np.float64)
    expected = np.array([math.exp(value) for value in x.tolist()])
    return float(np.max(np.abs(found / expected - 1)))


@SIZES
def test_the_fast_exp_is_within_2e_6_where_a_weight_matters(size: int) -> None:
    assert error_of_exp(-30, size) < 2e-6


@SIZES
def test_the_fast_exp_is_as_near_as_float32_range_reduction_goes(size: int) -> None:
    assert error_of_exp(-87, size) < 4.2e-6  # MLX's own: 3.9e-6


def test_the_fast_exp_of_what_is_masked_is_next_to_nothing() -> None:
    x = mx.full((1 << 13,), at.MASKED)
    found = np.array(cpu_math.exp_minus(x, mx.array(0.0)))
    assert np.all(found >= 0)
    assert np.all(found < 2e-38)


@pytest.mark.parametrize("size", [1 << 8, 1 << 15], ids=["few", "many"])
def test_the_fast_swiglu_is_that_of_the_true_exp(size: int) -> None:
    gate = np.linspace(-100, 100, size, dtype=np.float32)
    x = np.linspace(2, 3, size, dtype=np.float32)
    found = np.array(cpu_math.swiglu(mx.array(gate), mx.array(x)))
    wide = gate.astype(np.float64)
    np.testing.assert_allclose(found, wide / (1 + np.exp(-wide)) * x, rtol=4e-6, atol=1e-30)
