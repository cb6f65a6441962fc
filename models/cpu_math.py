"""Fast `exp`, maxima, sums and SwiGLU for MLX's CPU back end, in float32.

MLX's `exp` on the CPU is scalar, about 14 ns per element on one thread, and takes most of the time
of softmax and SwiGLU. The `exp` of this module is a polynomial after range reduction, several times
as fast. Its relative error is within 2e-6 down to e**-30, and within 4e-6 below. On a GPU MLX's own
functions are used.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import cache, lru_cache

import mlx.core as mx

from sgl_mlx import machine

_LOG2_E = 1.4426950408889634
_EXP2 = (  # 2**f on [-1/2, 1/2], degree 5, fitted at Chebyshev nodes
    1.000000075495349,
    0.6931472067106207,
    0.2402210735583043,
    0.05550327214208595,
    0.00967603709787286,
    0.0013400432165609313,
)
_ROUND = 12582912.0
"""1.5 * 2**23: a float32 plus this is rounded to an integer, found in the sum's low bits."""

_LOWEST = -126.0
"""Exponent of the smallest normal float32."""

WORTH_COMPILING = 1 << 12
"""Number of elements from which `mx.compile` saves time.

Attention scores get longer with every token, so each decode step traces the function again, once
for all layers. A trace takes less than half a millisecond."""

WORTH_A_POLYNOMIAL = 1 << 12
"""Number of elements from which the polynomial saves time.

Below it, dispatching a dozen operations takes longer than MLX's `exp`."""


def on_cpu() -> bool:
    """Return True if MLX computes on the CPU by default."""
    return not machine.on_gpu()


@cache
def has_compiler() -> bool:
    """Return True if `g++` is installed; MLX calls it at run time to compile CPU functions."""
    return shutil.which("g++") is not None


def exp_minus(x: mx.array, peak: mx.array) -> mx.array:
    """Compute `e**(x - peak)` in float32, for `x <= peak`.

    From `WORTH_A_POLYNOMIAL` elements on, results below e**-87 become about 1e-38, never 0.
    """
    if x.size < WORTH_A_POLYNOMIAL:
        return mx.exp(x - peak)
    return _run(_exp_below_zero, x - peak)  # MLX compiles a broadcast to a slow loop


def peaks(x: mx.array) -> mx.array:
    """Take maxima over the last axis, which stays with length 1.

    Reduces up to 16 columns side by side first: MLX reduces the last axis one element at a time.
    """
    split = x.reshape(*x.shape[:-1], math.gcd(x.shape[-1], 16), -1)
    return mx.max(mx.max(split, axis=-2), axis=-1, keepdims=True)


def sums(x: mx.array) -> mx.array:
    """Sum over the last axis, which stays with length 1.

    Multiplies by ones with BLAS, since MLX's own sum is four times slower.
    """
    return x @ mx.ones((x.shape[-1], 1), x.dtype)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Compute `silu(gate) * x` elementwise, in float32."""
    return _run(_swiglu, gate, x)


def _exp(x: mx.array) -> mx.array:
    return _exp2(mx.clip(x * _LOG2_E, _LOWEST, 127.0))


def _exp_below_zero(x: mx.array) -> mx.array:
    return _exp2(mx.maximum(x * _LOG2_E, _LOWEST))


def _exp2(t: mx.array) -> mx.array:
    """Compute `2**t` as `2**n * 2**f`: n is the nearest integer to t, and f is t - n.

    `2**f` is a polynomial; adding n to the exponent bits multiplies by `2**n`.
    """
    rounded = t + _ROUND
    fraction = t - (rounded - _ROUND)
    power = fraction * _EXP2[-1] + _EXP2[-2]
    for coefficient in _EXP2[-3::-1]:
        power = power * fraction + coefficient
    return mx.view(mx.view(power, mx.int32) + (mx.view(rounded, mx.int32) << 23), mx.float32)


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return gate / (1.0 + _exp(-gate)) * x


def _run(function: Callable[..., mx.array], *args: mx.array) -> mx.array:
    if args[0].size < WORTH_COMPILING or not has_compiler():
        return function(*args)
    return _compiled(function, tuple(tuple(a.shape) for a in args))(*args)


@lru_cache(maxsize=128)
def _compiled(
    function: Callable[..., mx.array], shapes: tuple[tuple[int, ...], ...]
) -> Callable[..., mx.array]:
    """Compile a function for one set of shapes.

    `mx.view` cannot be compiled for unknown shapes, and MLX searches the traces of one function
    one by one. Each set of shapes therefore gets a function of its own.
    """
    return mx.compile(lambda *args: function(*args))
