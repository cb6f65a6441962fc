"""Recurrent layers on the CPU kernels against mlx-lm's own functions, at realistic widths.

Each layer has a width of 1,024 and random weights. Our layers have 4-bit weights and run on the CPU
kernels; mlx-lm's have float32 weights, the fastest type that MLX has on a CPU. Both sides run in
turns on one thread of Python. Each run is one step of a batch of sequences, which have states of
their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gated_delta, kimi_linear, lfm2, nemotron_h, qwen3_next
from mlx_lm.models.cache import ArraysCache

from sgl_mlx.benchmarks.micro.paired_runs import Pair, measure_pairs
from sgl_mlx.models.cpu_functions import CpuFunctions
from sgl_mlx.models.cpu_layers import use_kernels

RULE = "gated delta rule, 16 heads of 128"
HEADS, DIM, WIDTH = 16, 128, 1024
STEPS = ((1, 1), (8, 1), (32, 1), (1, 64))
"""Steps, as number of sequences and tokens per sequence: decode steps, then a prefill chunk."""

_LEAST_SECONDS = 0.1


class RecurrentBench:
    """The measurements of `sgl-mlx bench recurrent`.

    Args:
        kernels: the CPU kernels.
        repeats: number of measured pairs for each row of the table.
    """

    def __init__(self, kernels: ModuleType, repeats: int = 3) -> None:
        self._kernels = kernels
        self._repeats = repeats

    def pairs(self) -> Iterator[Pair]:
        """Measure each row of the table; yield it as soon as it is measured."""
        for rows, length in STEPS:
            yield self._pair(f"{RULE}, {_step(rows, length)}", 2.5, *self._rule(rows, length))
        for name, (make, arrays) in LAYERS.items():
            for rows, length in STEPS:
                ours, theirs = self._layers(make, arrays, rows, length)
                yield self._pair(f"{name}, {_step(rows, length)}", 1.0, ours, theirs)

    def _pair(
        self, name: str, bar: float, ours: Callable[[], float], theirs: Callable[[], float]
    ) -> Pair:
        return measure_pairs(name, "tok/s", bar, ours, theirs, self._repeats)

    def _rule(self, rows: int, length: int) -> tuple[Callable[[], float], Callable[[], float]]:
        shape = (rows, length, HEADS)
        q, k, v = (mx.random.normal((*shape, DIM)) * DIM**-0.5 for _ in range(3))
        g, beta = mx.random.uniform(shape=(2, *shape))
        state = mx.zeros((rows, HEADS, DIM, DIM))
        flat = [x.flatten(0, 1) for x in (q, k, v, g, beta)]
        mx.eval(q, k, v, g, beta, state, flat)
        ours = partial(self._kernels.gated_delta, *flat, state, [length] * rows)
        theirs = partial(gated_delta.gated_delta_ops, q, k, v, g, beta, state)
        return partial(_speed, ours, rows * length), partial(_speed, theirs, rows * length)

    def _layers(
        self, make: Callable[[], nn.Module], arrays: int, rows: int, length: int
    ) -> tuple[Callable[[], float], Callable[[], float]]:
        ours, theirs = make(), make()
        nn.quantize(ours, 64, 4)
        use_kernels(ours, self._kernels)
        sides: list[tuple[nn.Module, AbstractContextManager[Any]]]
        sides = [(ours, CpuFunctions(ours)), (theirs, nullcontext())]
        x = mx.random.normal((rows, length, WIDTH))
        mx.eval(x, [layer.parameters() for layer, _ in sides])
        steps = [partial(_run, layer, x, ArraysCache(arrays), on) for layer, on in sides]
        return partial(_speed, steps[0], rows * length), partial(_speed, steps[1], rows * length)


def milliseconds(pair: Pair) -> float:
    """Return our milliseconds per token for one layer, from our fastest run."""
    return 1000 / max(pair.ours)


def _step(rows: int, length: int) -> str:
    return f"decode B={rows}" if length == 1 else f"prefill {length}"


def _run(
    layer: nn.Module, x: mx.array, cache: ArraysCache, on: AbstractContextManager[Any]
) -> list[mx.array]:
    with on:
        return [layer(x, cache=cache, mask=None), *cache.cache]


def _speed(run: Callable[[], Any], tokens: int) -> float:
    """Return the tokens per second of the fastest of repeated runs, the least disturbed one."""
    began = time.perf_counter()
    fastest = math.inf
    while time.perf_counter() - began < _LEAST_SECONDS or fastest == math.inf:
        started = time.perf_counter()
        mx.eval(run())
        fastest = min(fastest, time.perf_counter() - started)
    return tokens / fastest


def _gated_delta_net() -> nn.Module:
    return qwen3_next.Qwen3NextGatedDeltaNet(
        SimpleNamespace(
            hidden_size=WIDTH,
            linear_num_value_heads=HEADS,
            linear_num_key_heads=HEADS,
            linear_key_head_dim=DIM,
            linear_value_head_dim=DIM,
            linear_conv_kernel_dim=4,
            rms_norm_eps=1e-6,
        )
    )


def _kimi_delta_attention() -> nn.Module:
    heads = {"num_heads": HEADS, "head_dim": DIM, "short_conv_kernel_size": 4}
    args = SimpleNamespace(hidden_size=WIDTH, linear_attn_config=heads, rms_norm_eps=1e-5)
    return kimi_linear.KimiDeltaAttention(args, 0)


def _mamba_2() -> nn.Module:
    return nemotron_h.NemotronHMamba2Mixer(
        SimpleNamespace(
            hidden_size=WIDTH,
            mamba_num_heads=2 * HEADS,
            mamba_head_dim=64,
            mamba_proj_bias=False,
            ssm_state_size=DIM,
            n_groups=8,
            conv_kernel=4,
            use_conv_bias=True,
            layer_norm_epsilon=1e-5,
            time_step_limit=(0.0, float("inf")),
        )
    )


def _short_convolution() -> nn.Module:
    args = SimpleNamespace(hidden_size=WIDTH, conv_L_cache=3, conv_bias=False)
    return lfm2.ShortConv(args, 0)


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "Qwen3-Next's gated delta net": (_gated_delta_net, 2),
    "Kimi Delta Attention": (_kimi_delta_attention, 4),
    "Nemotron-H's Mamba-2": (_mamba_2, 2),
    "LFM2's short convolution": (_short_convolution, 1),
}
"""Layers by name: how to make one, and its number of state arrays."""
