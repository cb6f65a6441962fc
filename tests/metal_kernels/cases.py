"""Inputs for the attention kernels, and what "equal" means for each dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from sgl_mlx.metal_kernels import ops, reference
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow, SharedSpan
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer, quantize

TOLERANCE = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 8e-3}
"""Largest difference, relative to the larger of 1 and the wanted value."""

INPUTS = {"extend_attention": ExtendInputs, "decode_attention": DecodeInputs}

NAMES = {mx.float32: "fp32", mx.float16: "fp16", mx.bfloat16: "bf16"}

LOUDEST = 127 / 4
"""Last element of a loud key: as 8 bits it has the scale 1/4, and so stays exact."""


@dataclass(frozen=True)
class Case:
    """One point of the grid.

    Args:
        value_dim: None when it is `dim`.
        values_in_keys: values are columns of the pool's keys.
        group: query heads to a KV head.
        loud: every score near -110, where its exp is zero: what does not subtract the peak divides
            zero by zero. Queries and keys are multiples of 1/16, so that dot products are exact:
            one rounding of such a score would cost as much as fp32 is allowed.
    """

    dim: int = 64
    dtype: mx.Dtype = mx.float16
    group: int = 1
    kv_heads: int = 1
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    quantized: bool = False
    scattered: bool = True
    loud: bool = False
    value_dim: int | None = None
    values_in_keys: bool = False

    def __str__(self) -> str:
        every = "sinks", "quantized", "scattered", "loud", "values_in_keys"
        flags = [n for n in every if getattr(self, n)]
        flags += [f"{n}{v:g}" for n in ("window", "softcap") if (v := getattr(self, n))]
        width = f"{self.dim}" if self.value_dim is None else f"{self.dim}/{self.value_dim}"
        return "-".join([width, NAMES[self.dtype], f"gqa{self.group}", *flags])

    def options(self, random: np.random.Generator) -> AttentionOptions:
        heads = self.group * self.kv_heads
        logits = random.normal(size=heads) - (110 if self.loud else 0)
        sinks = mx.array(logits, mx.float32).astype(self.dtype) if self.sinks else None
        return AttentionOptions(self.dim**-0.5, self.window, self.softcap, sinks)

    def queries(self, random: np.random.Generator, *shape: int) -> mx.array:
        array = random.normal(size=(*shape, self.group * self.kv_heads, self.dim)) * 2
        if self.loud:
            array = np.round(array * 16) / 16
            array[..., -1] = np.round(110 * self.dim**0.5 / LOUDEST * 16) / 16
        return mx.array(array, mx.float32).astype(self.dtype)

    def keys(self, random: np.random.Generator, *shape: int) -> mx.array:
        array = random.normal(size=(*shape, self.kv_heads, self.dim))
        if self.loud:
            array = np.round(array * 16) / 16
            array[..., -1] = -LOUDEST
        return mx.array(array, mx.float32).astype(self.dtype)

    def keys_and_values(
        self, random: np.random.Generator, *shape: int
    ) -> tuple[mx.array, mx.array]:
        keys, values = self.keys(random, *shape), self.values(random, *shape)
        return keys, keys[..., : self.value_dim] if self.values_in_keys else values

    def values(self, random: np.random.Generator, *shape: int) -> mx.array:
        array = random.normal(size=(*shape, self.kv_heads, self.value_dim or self.dim))
        return mx.array(array, mx.float32).astype(self.dtype)


class Slots:
    """Hands out pool slots, in one run or scattered; nothing else in the pool may be read."""

    def __init__(self, case: Case, random: np.random.Generator, total: int) -> None:
        self._case, self._random = case, random
        self._total = total
        order = random.permutation(total) if case.scattered else np.arange(total)
        self._free = [int(x) + 1 for x in order]

    def take(self, count: int) -> list[int]:
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "the pool of this case is too small"
        return taken

    def pool(self) -> PoolLayer:
        """Random keys and values in the slots taken, elsewhere NaN (or a NaN scale)."""
        case, random = self._case, self._random
        both = {"k": case.keys(random, self._total + 1), "v": case.values(random, self._total + 1)}
        if case.values_in_keys:
            del both["v"]
        unread = mx.array([0, *self._free], mx.int32)
        scales: dict[str, mx.array] = {}
        for name, array in both.items():
            if case.quantized:
                both[name], scales[name] = quantize(array)
                scales[name][unread] = mx.nan
            else:
                array[unread] = mx.nan
        v = "k" if case.values_in_keys else "v"
        return PoolLayer(both["k"], both[v], scales.get("k"), scales.get(v))


@dataclass
class Call:
    """Arguments of an op, by name."""

    op: str
    arguments: dict[str, Any]

    def run(self, kernels: Kernels) -> mx.array:
        out: mx.array = getattr(ops, self.op)(self.inputs, kernels)
        return out

    @property
    def inputs(self) -> Any:
        """The arguments as the op takes them."""
        return INPUTS[self.op](**self.arguments)

    def reference(self) -> mx.array:
        """Result of the reference, in float32."""
        out: mx.array = getattr(reference, self.op)(self.inputs)
        return out


def extend_call(case: Case, rows: Sequence[tuple[int, int]], seed: int = 0) -> Call:
    """`rows`: prefix length and new tokens of each."""
    random = np.random.default_rng(seed)
    slots = Slots(case, random, sum(prefix for prefix, _ in rows) + 3)
    plan = ExtendPlan([ExtendRow(slots.take(prefix), tokens) for prefix, tokens in rows])
    arguments = {
        "q": case.queries(random, plan.tokens),
        **dict(zip(("keys", "values"), case.keys_and_values(random, plan.tokens), strict=True)),
        "pool": slots.pool(),
        "plan": plan,
        "options": case.options(random),
    }
    return Call("extend_attention", arguments)


def decode_call(
    case: Case,
    private: Sequence[int],
    tail: int,
    spans: Sequence[tuple[int, int, int, int]] = (),
    *,
    tokens: int = 1,
    width: int | None = None,
    chunk: int = 64,
    seed: int = 0,
) -> Call:
    """`private`: lengths of the rows' own prefixes; `spans`: first, last, start and length."""
    random = np.random.default_rng(seed)
    slots = Slots(case, random, sum(private) + sum(length for *_, length in spans) + 3)
    shared = [SharedSpan(a, b, start, slots.take(length)) for a, b, start, length in spans]
    width = tail + 2 if width is None else width
    rows = [slots.take(n) for n in private]
    plan = DecodePlan(rows, shared, width=width, tokens=tokens, chunk=chunk)
    tail_keys, tail_values = case.keys_and_values(random, len(rows), width)
    unread = mx.arange(width)[None, :, None, None] >= tail
    arguments = {
        "q": case.queries(random, len(rows) * tokens),
        "tail_keys": mx.where(unread, mx.array(mx.nan, case.dtype), tail_keys),
        "tail_values": mx.where(unread, mx.array(mx.nan, case.dtype), tail_values),
        "tail_length": tail,
        "pool": slots.pool(),
        "plan": plan,
        "options": case.options(random),
    }
    return Call("decode_attention", arguments)


def assert_close(got: mx.array, want: mx.array, dtype: mx.Dtype) -> float:
    """Returns the largest difference."""
    g, w = (np.array(x.astype(mx.float32)) for x in (got, want))
    difference = np.abs(g - w) / np.maximum(1, np.abs(w))
    worst = float(np.max(difference))  # NaN stays NaN
    assert worst <= TOLERANCE[dtype], (
        f"differs by at most {worst:.2e}, on average {np.mean(difference):.2e} "
        f"in {NAMES[dtype]}, allowed {TOLERANCE[dtype]:.0e}"
    )
    return worst
