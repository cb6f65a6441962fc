"""One layer of the KV pool as the kernels see it, 8-bit or not, and what attention may be told."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

LEVELS = 127
"""Steps of an 8-bit value on either side of zero."""

LARGEST_SCALE = 65504.0
"""Of float16."""


class PoolLayer(NamedTuple):
    """Keys and values `(slots + 1, kv_heads, dim)` of one layer; slot 0 is padding, all zero.

    In the model's dtype, or int8 with float16 scales `(slots + 1, kv_heads)`: one scale a token
    and head, `x ~ q * scale`.
    """

    keys: mx.array
    values: mx.array
    key_scales: mx.array | None = None
    value_scales: mx.array | None = None

    @property
    def quantized(self) -> bool:
        return self.key_scales is not None

    def gather(self, slots: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Keys and values `(*slots.shape, kv_heads, dim)` in `dtype`."""
        keys, values = self.keys[slots], self.values[slots]
        if self.key_scales is None or self.value_scales is None:
            return keys.astype(dtype), values.astype(dtype)
        return (
            dequantize(keys, self.key_scales[slots], dtype),
            dequantize(values, self.value_scales[slots], dtype),
        )


class Options(NamedTuple):
    """How scores become weights.

    Args:
        scale: of the dot products.
        window: key j is seen from position p iff `0 <= p - j < window`; None: every key before.
        softcap: scores become `softcap * tanh(score / softcap)`, before the mask.
        sinks: `(heads,)`, logits of no key: they take their share of the softmax.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: mx.array | None = None


def quantize(x: mx.array) -> tuple[mx.array, mx.array]:
    """`x (…, dim)` as int8 of the same shape and float16 scales `(…)`, symmetric."""
    wide = x.astype(mx.float32)
    largest = mx.max(mx.abs(wide), axis=-1) / LEVELS
    scales = mx.minimum(largest, LARGEST_SCALE).astype(mx.float16)
    divisor = scales.astype(mx.float32)[..., None]
    levels = mx.round(wide / mx.where(divisor > 0, divisor, mx.inf))
    return mx.clip(levels, -LEVELS, LEVELS).astype(mx.int8), scales


def dequantize(levels: mx.array, scales: mx.array, dtype: mx.Dtype) -> mx.array:
    """What `quantize` stored, `(…, dim)` in `dtype`."""
    wide = levels.astype(mx.float32) * scales.astype(mx.float32)[..., None]
    return wide.astype(dtype)
