"""Functions of mlx-lm that run on the CPU kernels while an engine's model runs.

mlx-lm's architectures call these functions as globals of a module. The globals are replaced once in
a process, however many engines are built. Outside the context `CpuFunctions`, on a GPU, and for
arguments that a kernel does not support, the replacements call mlx-lm's own functions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import lru_cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gated_delta, ssm

from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.models.cpu_math import WORTH_COMPILING, on_cpu, swiglu
from sgl_mlx.models.redirect import Function, redirect, redirect_in

LANES = 16
"""A key's number of elements must be a multiple of this, for the kernels of recurrences."""


class CpuFunctions:
    """Context manager in which a thread runs mlx-lm's functions on the CPU kernels.

    It does nothing on a GPU. On a CPU without compiled kernels, only `swiglu` is replaced.

    Attributes:
        kernels: the CPU kernels; None on a GPU, or where they are not compiled.
    """

    def __init__(self, model: nn.Module) -> None:
        self._on_cpu = on_cpu()
        self.kernels = open_cpu_kernels() if self._on_cpu else None
        self._token: Token[CpuFunctions | None] | None = None
        if not self._on_cpu:
            return
        redirect(model, "swiglu", _while_entered(_swiglu))
        redirect(model, "precise_swiglu", _while_entered(_precise_swiglu))
        redirect(model, "normalize_qk", _while_entered(_normalize_qk))
        redirect(model, "nn", _with_fast_silu)
        redirect_in(gated_delta, "gated_delta_ops", _while_entered(_gated_delta))
        redirect_in(gated_delta, "compute_g", _while_entered(_decay))
        redirect_in(gated_delta, "compute_lower_bound_g", _while_entered(_decay))
        redirect_in(ssm, "ssm_attn", _while_entered(_state_space))

    def __enter__(self) -> None:
        if self._on_cpu:
            self._token = _entered.set(self)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _entered.reset(self._token)
            self._token = None


_entered: ContextVar[CpuFunctions | None] = ContextVar("fast functions", default=None)


def _while_entered(fast: Callable[..., Any]) -> Callable[[Function], Function]:
    """Wrap a function so that it becomes `fast(kernels, original, *args)` inside the context."""

    def wrap(original: Function) -> Function:
        def call(*args: Any, **kwargs: Any) -> Any:
            entered = _entered.get()
            if entered is None:
                return original(*args, **kwargs)
            return fast(entered.kernels, original, *args, **kwargs)

        return call

    return wrap


class _WithFastSilu:
    """The module `mlx.nn` as mlx-lm's modules see it, with a `silu` on the kernels."""

    def __init__(self, original: ModuleType) -> None:
        self.redirected_from = original
        self.silu = _while_entered(_silu)(original.silu)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.redirected_from, name)


def _with_fast_silu(original: Any) -> Any:
    return _WithFastSilu(original)


def _silu(kernels: ModuleType | None, original: Function, x: mx.array) -> mx.array:
    if kernels is None or not _float32(x):
        plain: mx.array = original(x)
        return plain
    out: mx.array = kernels.silu(x)
    return out


def _swiglu(
    kernels: ModuleType | None, original: Function, gate: mx.array, x: mx.array
) -> mx.array:
    """Compute `silu(gate) * x`: by the kernel, else by a polynomial, or MLX for few elements."""
    if not _float32(gate, x) or (kernels is None and gate.size < WORTH_COMPILING):
        plain: mx.array = original(gate, x)
        return plain
    out: mx.array = swiglu(gate, x) if kernels is None else kernels.swiglu(gate, x)
    return out


def _precise_swiglu(
    kernels: ModuleType | None, original: Function, h: mx.array, gate: mx.array, x: mx.array
) -> mx.array:
    """Compute `silu(gate) * x` in float32, and return it in the dtype of `h`."""
    if kernels is None or not _float32(h, gate, x):
        plain: mx.array = original(h, gate, x)
        return plain
    out: mx.array = kernels.swiglu(gate, x)
    return out


def _normalize_qk(
    kernels: ModuleType | None,
    original: Function,
    q: mx.array,
    k: mx.array,
    *,
    inv_scale: float,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Normalise keys to length 1, and queries to length `inv_scale`, which is `dim ** -0.5`."""
    if kernels is None or not _float32(q, k):
        plain: tuple[mx.array, mx.array] = original(q, k, inv_scale=inv_scale, eps=eps)
        return plain
    dim = k.shape[-1]
    return (
        kernels.rms_norm(q, _constant(dim, inv_scale**2), eps * inv_scale**2),
        kernels.rms_norm(k, _constant(dim, inv_scale), eps * inv_scale**2),
    )


@lru_cache(maxsize=64)
def _constant(length: int, value: float) -> mx.array:
    constant = mx.full((length,), value)
    mx.eval(constant)
    return constant


def _decay(
    kernels: ModuleType | None,
    original: Function,
    A_log: mx.array,
    a: mx.array,
    dt_bias: mx.array,
    *lower_bound: float,
) -> mx.array:
    """Compute a decay per key channel (Kimi Delta Attention); mlx-lm computes decays per head."""
    heads = a.shape[2:]
    by_channel = len(heads) == 2 and heads[1] % LANES == 0
    fits = A_log.shape == (heads[0], 1) and dt_bias.shape == heads
    if kernels is None or not (by_channel and fits and _float32(A_log, a, dt_bias)):
        plain: mx.array = original(A_log, a, dt_bias, *lower_bound)
        return plain
    out: mx.array = kernels.channel_decay(a, A_log[:, 0], dt_bias, *(lower_bound or (0.0,)))
    return out


def _gated_delta(
    kernels: ModuleType | None,
    original: Function,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    g: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Compute the gated delta rule; arguments and results are those of mlx-lm's `gated_delta_ops`.

    Args:
        kernels: the compiled CPU kernels; None if there are none.
        original: mlx-lm's function, for what the kernels do not compute.
    """
    rows, length, heads, value_dim = v.shape
    if state is None:
        state = mx.zeros((rows, heads, value_dim, k.shape[-1]))
    if kernels is None or mask is not None or not _recurs(k, q, v, g, beta, state):
        plain: tuple[mx.array, mx.array] = original(q, k, v, g, beta, state, mask)
        return plain
    flat = (x.flatten(0, 1) for x in (q, k, v, g, beta))
    y, state = kernels.gated_delta(*flat, state, [length] * rows)
    return y.reshape(v.shape), state


def _state_space(
    kernels: ModuleType | None,
    original: Function,
    x: mx.array,
    A_log: mx.array,
    B: mx.array,
    C: mx.array,
    D: mx.array,
    dt: mx.array,
    dt_bias: mx.array,
    state: mx.array | None = None,
    time_step_limit: tuple[float, float] = (0.001, 100.0),
    mask: mx.array | None = None,
    lengths: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Compute the state space of Mamba-2 over `(rows, length)`; shapes as in `ssm_attn`.

    Computes token by token, where mlx-lm computes chunks of 256 tokens as matrix products: the
    result does not depend on where a prompt is cut.
    """
    rows, length, heads, dim = x.shape
    if state is None:
        state = mx.zeros((rows, heads, dim, B.shape[-1]))
    masked = mask is not None or lengths is not None
    if kernels is None or masked or not _recurs(B, C, x, state):
        args = x, A_log, B, C, D, dt, dt_bias, state, time_step_limit
        plain: tuple[mx.array, mx.array] = original(*args, mask=mask, lengths=lengths)
        return plain
    dt = ssm.compute_dt(dt, dt_bias, time_step_limit)
    decay = mx.exp(-mx.exp(A_log.astype(mx.float32)) * dt)
    flat = (a.flatten(0, 1) for a in (C, B, x, decay, dt))
    y, state = kernels.state_space(*flat, D.astype(mx.float32), state, [length] * rows)
    return y.reshape(x.shape), state


def _recurs(keys: mx.array, *others: mx.array) -> bool:
    return keys.shape[-1] % LANES == 0 and _float32(keys, *others)


def _float32(*arrays: mx.array) -> bool:
    return all(x.dtype == mx.float32 for x in arrays)
