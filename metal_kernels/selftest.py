"""Self-test of a kernel: its result is compared with the reference, on small random inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx

from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow, SharedSpan
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer, quantize

SLACK = 1e-5
"""Largest difference in an output element besides rounding to the dtype; values are about 1."""

_SLOTS = 256
_WIDTH = 8


@dataclass(frozen=True)
class Case:
    """Specialisation of a kernel: a set of arguments for which MLX compiles its own version.

    Args:
        dim: the width of queries and keys.
        capped: True if a soft-cap is applied to the scores.
        value_dim: the width of values; None if it equals `dim`.
        values_in_keys: True if a value is the first `value_dim` columns of its key.
    """

    work: Literal["extend", "decode"]
    heads: int
    kv_heads: int
    dim: int
    dtype: mx.Dtype
    quantized: bool = False
    window: int | None = None
    capped: bool = False
    sinks: bool = False
    value_dim: int | None = None
    values_in_keys: bool = False

    @classmethod
    def of(cls, inputs: ExtendInputs | DecodeInputs) -> Case:
        """Return the case that these inputs need."""
        work: Literal["extend", "decode"] = (
            "extend" if isinstance(inputs, ExtendInputs) else "decode"
        )
        q = inputs.q
        values = inputs.values if isinstance(inputs, ExtendInputs) else inputs.tail_values
        pool = cls.of_pool(work, q.shape[1], inputs.pool, values.shape[-1], q.dtype)
        return pool.with_options(inputs.options)

    @classmethod
    def of_pool(
        cls,
        work: Literal["extend", "decode"],
        heads: int,
        pool: PoolLayer,
        value_dim: int,
        dtype: mx.Dtype,
    ) -> Case:
        """Return the case of `heads` query heads over this pool, without options."""
        _, kv_heads, dim = pool.keys.shape
        return cls(
            *(work, heads, kv_heads, dim, dtype, pool.quantized),
            value_dim=None if value_dim == dim else value_dim,
            values_in_keys=pool.values_in_keys,
        )

    def with_options(self, options: AttentionOptions) -> Case:
        """Return this case with a layer's options."""
        return replace(
            self,
            window=options.window,
            capped=options.softcap is not None,
            sinks=options.sinks is not None,
        )

    def __str__(self) -> str:
        told = {**vars(self), "dtype": str(self.dtype).rpartition(".")[2]}
        del told["work"]
        return f"{self.work}({', '.join(f'{k}={v}' for k, v in told.items() if v)})"


def compare(case: Case, kernels: Kernels, seed: int = 0) -> tuple[bool, str]:
    """Compare a kernel with the reference on random inputs.

    The prefixes of the rows are empty, short, and longer than a chunk of keys and the window. In
    decode, two rows share spans of prefix. An output element may differ by its rounding to the
    case's dtype (one unit in the last place) plus `SLACK`.

    Returns:
        True if the results agree, and a phrase that says by how much they differ.

    Raises:
        RuntimeError: Metal cannot compile the kernel.
    """
    got, right = both_ways(case, kernels, seed)
    difference = mx.abs(got.astype(mx.float32) - right)
    largest, mean = mx.max(difference).item(), mx.mean(difference).item()
    allowed = mx.finfo(case.dtype).eps * mx.abs(right) + SLACK
    good = bool(mx.all(difference <= allowed).item())  # False for NaN
    return good, f"differs by {largest:.1e} at most, {mean:.1e} on average"


def both_ways(case: Case, kernels: Kernels, seed: int = 0) -> tuple[mx.array, mx.array]:
    """Return the unevaluated results of the kernel and of the reference for a case."""
    return (_extend if case.work == "extend" else _decode)(case, kernels, seed)


def _extend(case: Case, kernels: Kernels, seed: int) -> tuple[mx.array, mx.array]:
    plan = ExtendPlan([ExtendRow([], 5), ExtendRow(_scattered(case), 9), ExtendRow([7], 33)])
    q, keys, values = _random(case, plan.tokens, seed)
    inputs = ExtendInputs(q, keys, values, _pool(case, seed), plan, _options(case))
    return ops.extend_attention(inputs, kernels), reference.extend_attention(inputs)


def _decode(case: Case, kernels: Kernels, seed: int) -> tuple[mx.array, mx.array]:
    spans = [SharedSpan(0, 2, 0, range(40, 90)), SharedSpan(0, 2, 50, range(9, 20))]
    plan = DecodePlan([[], range(120, 200, 3), _scattered(case)], spans, width=_WIDTH, chunk=32)
    q, _, _ = _random(case, 3, seed)
    tail = [x.reshape(3, _WIDTH, *x.shape[1:]) for x in _random(case, 3 * _WIDTH, seed)[1:]]
    pool, options = _pool(case, seed), _options(case)
    inputs = DecodeInputs(q, tail[0], tail[1], _WIDTH - 2, pool, plan, options)
    return ops.decode_attention(inputs, kernels), reference.decode_attention(inputs)


def _scattered(case: Case) -> list[int]:
    """List scattered slots of a prefix that is longer than the case's window."""
    return [1 + i * 101 % (_SLOTS - 1) for i in range((case.window or 0) + 70)]


def _random(case: Case, tokens: int, seed: int) -> tuple[mx.array, mx.array, mx.array]:
    """Draw random queries, keys and values for `tokens` tokens."""
    value_dim = case.value_dim or case.dim
    sizes = (case.heads, case.dim), (case.kv_heads, case.dim), (case.kv_heads, value_dim)
    shapes = [(tokens, *size) for size in sizes]
    keys = mx.random.split(mx.random.key(tokens + 1000 * seed), 3)
    q, k, v = (
        mx.random.normal(shape, key=key).astype(case.dtype)
        for shape, key in zip(shapes, keys, strict=True)
    )
    return q, k, k[..., :value_dim] if case.values_in_keys else v


def _pool(case: Case, seed: int) -> PoolLayer:
    _, keys, values = _random(case, _SLOTS, seed)
    return pool_of(keys, None if case.values_in_keys else values, case.quantized)


def pool_of(keys: mx.array, values: mx.array | None, quantized: bool) -> PoolLayer:
    """Make a layer of a KV pool; if `values` is None, values are the first columns of the keys."""
    if not quantized:
        return PoolLayer(keys, keys if values is None else values)
    levels, scales = quantize(keys)
    value_levels, value_scales = (levels, scales) if values is None else quantize(values)
    return PoolLayer(levels, value_levels, scales, value_scales)


def _options(case: Case) -> AttentionOptions:
    sinks = mx.random.normal((case.heads,), key=mx.random.key(0)).astype(case.dtype)
    softcap = 20.0 if case.capped else None
    return AttentionOptions(case.dim**-0.5, case.window, softcap, sinks if case.sinks else None)
