"""What makes MLX's CPU back end bearable: a fast `exp` and the activations built on it.

MLX's `exp` on the CPU is scalar, about 14 ns an element on one thread, and takes most of the time
of softmax and SwiGLU. Here it is a polynomial after range reduction, several times as fast and as
near: within 2e-6 relative error down to e**-30, 4e-6 below. Used on the CPU in float32 only; on a
GPU MLX's own functions are right.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from functools import cache, lru_cache

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.cpu_kernels.open import open_cpu_kernels

Activation = Callable[[mx.array, mx.array], mx.array]

_SWIGLU = "swiglu"
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
"""1.5 * 2**23: adding it rounds a float32 to an integer, which its low bits then hold."""

_LOWEST = -126.0
"""Exponent of the smallest normal float32."""

_WORTH_COMPILING = 1 << 12
"""Elements. The shapes of scores grow with every token, so a step traces them anew; but once for
all layers, and that takes less than half a millisecond."""

WORTH_A_POLYNOMIAL = 1 << 12
"""Elements; below it a dozen operations cost more to dispatch than one slow `exp`."""


def on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


@cache
def has_compiler() -> bool:
    """MLX compiles for the CPU by calling a C++ compiler at run time."""
    return shutil.which("g++") is not None


def exp_minus(x: mx.array, peak: mx.array) -> mx.array:
    """`e**(x - peak)` in float32, at most 1; less than e**-87 gives about 1e-38, never 0."""
    if x.size < WORTH_A_POLYNOMIAL:
        return mx.exp(x - peak)
    return _run(_exp_below_zero, x - peak)  # a compiled broadcast is no vector loop


def peaks(x: mx.array) -> mx.array:
    """Maxima over the last axis, which stays; first of 16 columns, side by side, since MLX goes
    along a row one by one."""
    split = x.reshape(*x.shape[:-1], math.gcd(x.shape[-1], 16), -1)
    return mx.max(mx.max(split, axis=-2), axis=-1, keepdims=True)


def sums(x: mx.array) -> mx.array:
    """Over the last axis, which stays; by BLAS, since MLX's own sum takes four times as long."""
    return x @ mx.ones((x.shape[-1], 1), x.dtype)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x` elementwise, in float32."""
    return _run(_swiglu, gate, x)


def _exp(x: mx.array) -> mx.array:
    return _exp2(mx.clip(x * _LOG2_E, _LOWEST, 127.0))


def _exp_below_zero(x: mx.array) -> mx.array:
    return _exp2(mx.maximum(x * _LOG2_E, _LOWEST))


def _exp2(t: mx.array) -> mx.array:
    """2**n * 2**f with n an integer and f in [-1/2, 1/2]; n goes into the exponent's bits."""
    rounded = t + _ROUND
    fraction = t - (rounded - _ROUND)
    power = fraction * _EXP2[-1] + _EXP2[-2]
    for coefficient in _EXP2[-3::-1]:
        power = power * fraction + coefficient
    return mx.view(mx.view(power, mx.int32) + (mx.view(rounded, mx.int32) << 23), mx.float32)


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return gate / (1.0 + _exp(-gate)) * x


def _run(function: Callable[..., mx.array], *args: mx.array) -> mx.array:
    if args[0].size < _WORTH_COMPILING or not has_compiler():
        return function(*args)
    return _compiled(function, tuple(tuple(a.shape) for a in args))(*args)


@lru_cache(maxsize=128)
def _compiled(
    function: Callable[..., mx.array], shapes: tuple[tuple[int, ...], ...]
) -> Callable[..., mx.array]:
    """One compiled function a shape: `view` cannot be traced without shapes, and MLX searches a
    function's traces one by one, so they are kept few."""
    return mx.compile(lambda *args: function(*args))


class FastActivations:
    """Makes a model's `swiglu` the fast one while entered; mlx-lm's own runs are left alone.

    mlx-lm's architectures call it as a global of their module, so that is rebound once to a
    function that looks whether it is wanted now.
    """

    def __init__(self, model: nn.Module) -> None:
        self._entered = False
        if not on_cpu():
            return
        self._kernels = open_cpu_kernels()
        for name in {type(m).__module__ for m in model.modules()}:
            module = sys.modules[name]
            if name.startswith("mlx_lm.models.") and hasattr(module, _SWIGLU):
                setattr(module, _SWIGLU, self._either(getattr(module, _SWIGLU)))

    def __enter__(self) -> None:
        self._entered = True

    def __exit__(self, *_: object) -> None:
        self._entered = False

    def _either(self, original: Activation) -> Activation:
        def swiglu_now(gate: mx.array, x: mx.array) -> mx.array:
            if not self._entered or not gate.dtype == x.dtype == mx.float32:
                return original(gate, x)
            if self._kernels is not None:
                out: mx.array = self._kernels.swiglu(gate, x)
                return out
            return swiglu(gate, x) if gate.size >= _WORTH_COMPILING else original(gate, x)

        return swiglu_now
