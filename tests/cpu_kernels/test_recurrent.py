"""Recurrences and short convolutions against mlx-lm's own functions, for rows of any length."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.gated_delta import compute_g, compute_lower_bound_g, gated_delta_ops
from mlx_lm.models.ssm import ssm_attn

TOLERANCE = 2e-5
"""Error relative to the largest output: sums of float32 in another order."""

Result = tuple[mx.array, mx.array]
Recurrence = Callable[[slice, mx.array, list[int]], Result]
"""Computes the tokens of a slice, from these states and for rows of these lengths."""


class Shape(NamedTuple):
    """Heads and widths of a recurrence; `groups` value heads share a key head."""

    key_heads: int
    groups: int
    key_dim: int
    value_dim: int

    @property
    def states(self) -> tuple[int, int, int]:
        return self.key_heads * self.groups, self.value_dim, self.key_dim


SHAPES = st.builds(
    Shape,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([16, 48, 64, 128]),
    st.sampled_from([1, 7, 32, 64, 128]),
)
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=5)


def normal(key: mx.array, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=key)


class Delta:
    """Random input of the gated delta rule, for `tokens` tokens."""

    def __init__(self, shape: Shape, tokens: int, by_channel: bool, seed: int) -> None:
        heads, value_dim, key_dim = shape.states
        q, k, v, g, beta = mx.random.split(mx.random.key(seed), 5)
        gates = (heads, key_dim) if by_channel else (heads,)
        self.inputs = (
            normal(q, tokens, shape.key_heads, key_dim) * key_dim**-0.5,
            normal(k, tokens, shape.key_heads, key_dim) * key_dim**-0.5,
            normal(v, tokens, heads, value_dim),
            mx.random.uniform(0.3, 1.0, (tokens, *gates), key=g),
            mx.random.uniform(0.0, 1.0, (tokens, heads), key=beta),
        )

    def ours(self, kernels: ModuleType) -> Recurrence:
        return lambda part, states, lengths: kernels.gated_delta(
            *(x[part] for x in self.inputs), states, lengths
        )

    def mlx_lm(self, part: slice, state: mx.array) -> Result:
        y, state = gated_delta_ops(*(x[part][None] for x in self.inputs), state[None])
        return y[0], state[0]


class Space:
    """Random input of Mamba-2's state space, for `tokens` tokens."""

    def __init__(self, shape: Shape, tokens: int, seed: int) -> None:
        heads, value_dim, key_dim = shape.states
        x, b, c, dt, rest = mx.random.split(mx.random.key(seed), 5)
        self.x = normal(x, tokens, heads, value_dim)
        self.B = normal(b, tokens, shape.key_heads, key_dim) * key_dim**-0.5
        self.C = normal(c, tokens, shape.key_heads, key_dim) * key_dim**-0.5
        self.dt = normal(dt, tokens, heads)
        self.A_log, self.dt_bias, self.D = normal(rest, 3, heads)

    def ours(self, kernels: ModuleType) -> Recurrence:
        dt = nn.softplus(self.dt + self.dt_bias)
        decay = mx.exp(-mx.exp(self.A_log) * dt)
        return lambda part, states, lengths: kernels.state_space(
            *(x[part] for x in (self.C, self.B, self.x, decay, dt)), self.D, states, lengths
        )

    def mlx_lm(self, part: slice, state: mx.array) -> Result:
        x, B, C, dt = (x[part][None] for x in (self.x, self.B, self.C, self.dt))
        limit = (0.0, float("inf"))
        out = ssm_attn(x, self.A_log, B, C, self.D, dt, self.dt_bias, state[None], limit)
        return out[0][0], out[1][0]


def rows_of(lengths: list[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def assert_close(got: mx.array, want: mx.array) -> None:
    largest = max(1.0, float(mx.abs(want).max())) if want.size else 1.0
    np.testing.assert_allclose(np.array(got), np.array(want), atol=TOLERANCE * largest)


def check(inputs: Delta | Space, shape: Shape, lengths: list[int], kernels: ModuleType) -> None:
    """Compare a batch of rows with each row alone in mlx-lm, and a cut batch with the whole."""
    states = normal(mx.random.key(7), len(lengths), *shape.states) * 0.5
    run, every = inputs.ours(kernels), slice(None)
    y, after = run(every, states, lengths)
    for i, part in enumerate(rows_of(lengths)):
        if lengths[i] == 0:
            assert mx.array_equal(after[i], states[i])
            continue
        want, want_state = inputs.mlx_lm(part, states[i])
        assert_close(y[part], want)
        assert_close(after[i], want_state)
        cut = part.start + lengths[i] // 3
        first, middle = run(slice(part.start, cut), states[i : i + 1], [cut - part.start])
        rest, last = run(slice(cut, part.stop), middle, [part.stop - cut])
        assert mx.array_equal(mx.concatenate([first, rest]), y[part])
        assert mx.array_equal(last[0], after[i])


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, lengths=LENGTHS, by_channel=st.booleans(), seed=st.integers(0, 99))
def test_the_gated_delta_rule(
    shape: Shape, lengths: list[int], by_channel: bool, seed: int, kernels: ModuleType
) -> None:
    check(Delta(shape, sum(lengths), by_channel, seed), shape, lengths, kernels)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, lengths=LENGTHS, seed=st.integers(0, 99))
def test_the_state_space_of_mamba_2(
    shape: Shape, lengths: list[int], seed: int, kernels: ModuleType
) -> None:
    check(Space(shape, sum(lengths), seed), shape, lengths, kernels)


def test_a_long_row_is_as_good_as_mlx_lms_chunks_of_256(kernels: ModuleType) -> None:
    shape = Shape(1, 2, 64, 32)
    check(Space(shape, 600, seed=3), shape, [600], kernels)


def test_heads_of_a_wider_array_need_no_copy_in_order(kernels: ModuleType) -> None:
    shape = Shape(2, 2, 32, 16)
    inputs = Delta(shape, 9, False, seed=1)
    q, k, v, *gates = inputs.inputs
    joined = mx.concatenate([x.flatten(1) for x in (q, k, v)], axis=1)
    parts = mx.split(joined, [64, 128], axis=1)
    views = [x.reshape(y.shape) for x, y in zip(parts, (q, k, v), strict=True)]
    states = normal(mx.random.key(7), 2, *shape.states)
    want = kernels.gated_delta(q, k, v, *gates, states, [4, 5])
    turned = [mx.contiguous(x.T).T for x in (q, k, v)]
    for others in (views, turned):
        got = kernels.gated_delta(*others, *gates, states, [4, 5])
        assert all(mx.array_equal(a, b) for a, b in zip(got, want, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 40),
    width=st.integers(1, 5),
    channels=st.integers(1, 300),
    bias=st.booleans(),
)
def test_short_convolutions(
    rows: int, length: int, width: int, channels: int, bias: bool, kernels: ModuleType
) -> None:
    layer = nn.Conv1d(channels, channels, width, groups=channels, bias=bias)
    x = normal(mx.random.key(channels), rows, length + width - 1, channels)
    offset = layer.bias if bias else None
    weights = layer.weight[..., 0].T
    y = kernels.short_convolution(x, weights, offset)
    assert_close(y, layer(x))
    cut = length // 2
    parts = x[:, : cut + width - 1], x[:, cut:]
    chunks = [kernels.short_convolution(part, weights, offset) for part in parts]
    assert mx.array_equal(mx.concatenate(chunks, axis=1), y)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 4), st.sampled_from([16, 48])),
    loudness=st.sampled_from([0.1, 3.0, 30.0]),
    bound=st.sampled_from([0.0, -5.0, -0.5]),
)
def test_decay_by_channel(
    shape: tuple[int, int, int, int], loudness: float, bound: float, kernels: ModuleType
) -> None:
    keys = mx.random.split(mx.random.key(sum(shape)), 3)
    a, A_log = normal(keys[0], *shape) * loudness, normal(keys[1], shape[2])
    bias = normal(keys[2], *shape[2:])
    args = A_log[:, None], a, bias
    want = compute_lower_bound_g(*args, bound) if bound else compute_g(*args)
    assert_close(kernels.channel_decay(a, A_log, bias, bound), want)


def test_what_does_not_fit_together_is_refused(kernels: ModuleType) -> None:
    q = mx.zeros((3, 1, 16))
    gate, states = mx.zeros((3, 1)), mx.zeros((2, 1, 16, 16))
    with pytest.raises(ValueError, match="lengths must name the tokens of each row"):
        kernels.gated_delta(q, q, q, gate, gate, states, [1, 1])
    with pytest.raises(ValueError, match="lengths must name the tokens of each row"):
        kernels.gated_delta(q, q, q, gate, gate, states, [3])
    narrow = mx.zeros((3, 1, 8))
    with pytest.raises(ValueError, match="multiple of 16"):
        kernels.gated_delta(narrow, narrow, q, gate, gate, mx.zeros((1, 1, 16, 8)), [3])
    with pytest.raises(ValueError, match="wrong dtype"):
        kernels.gated_delta(q.astype(mx.float16), q, q, gate, gate, states, [1, 2])
    with pytest.raises(ValueError, match="decay needs"):
        kernels.channel_decay(mx.zeros((1, 2, 16)), mx.zeros((2,)), mx.zeros((2, 8)), 0.0)
    with pytest.raises(ValueError, match="weights"):
        kernels.short_convolution(mx.zeros((1, 5, 8)), mx.zeros((4, 9)), None)
