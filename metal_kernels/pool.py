"""One layer of the KV pool as kernels read it, its 8-bit format, and the options of attention."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

LEVELS = 127
"""Largest 8-bit level; -128 is not used, so that levels are symmetric around zero."""

LARGEST_SCALE = 65504.0
"""Largest scale: the largest float16."""


class PoolLayer(NamedTuple):
    """Keys and values of one layer, each `(slots + 1, kv_heads, dim)`.

    Slot 0 is padding: all zero. Values may have a smaller `dim` than keys (MiMo). If `values` is
    the array of keys itself, a value is the first columns of its key (MLA). Keys and
    values are in the model's dtype, or in int8 with float16 scales `(slots + 1, kv_heads)`: one
    scale for each token and head, so that `x ≈ level * scale`.
    """

    keys: mx.array
    values: mx.array
    key_scales: mx.array | None = None
    value_scales: mx.array | None = None

    @property
    def quantized(self) -> bool:
        return self.key_scales is not None

    @property
    def values_in_keys(self) -> bool:
        return self.values is self.keys

    def gather(
        self, slots: mx.array, dtype: mx.Dtype, value_dim: int | None = None
    ) -> tuple[mx.array, mx.array]:
        """Copy keys and values of `slots` out of the pool, each `(*slots.shape, kv_heads, dim)`.

        Both are converted to `dtype`.

        Args:
            value_dim: width of the returned values; None keeps the stored width.
        """
        keys, values = self.keys[slots], self.values[slots][..., :value_dim]
        if self.key_scales is None or self.value_scales is None:
            return keys.astype(dtype), values.astype(dtype)
        return (
            dequantize(keys, self.key_scales[slots], dtype),
            dequantize(values, self.value_scales[slots], dtype),
        )


class AttentionOptions(NamedTuple):
    """Options of one layer's attention.

    Args:
        scale: factor of the dot products of queries and keys.
        window: position p sees key j if `0 <= p - j < window`; None: if `j <= p`.
        softcap: if given, scores become `softcap * tanh(score / softcap)`, before the mask.
        sinks: `(heads,)`, one extra logit per head: it takes part in the softmax without a value.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: mx.array | None = None


def quantize(x: mx.array) -> tuple[mx.array, mx.array]:
    """Quantize `x (…, dim)` to int8 levels of the same shape and float16 scales `(…)`.

    The scale is rounded to float16 before `x` is divided by it, so that this rounding adds no
    error. Where the scale is 0, the level is 0.
    """
    wide = x.astype(mx.float32)
    largest = mx.max(mx.abs(wide), axis=-1)
    scales = mx.minimum(largest / LEVELS, LARGEST_SCALE).astype(mx.float16)
    divisor = mx.where(scales > 0, scales, mx.inf).astype(mx.float32)
    levels = mx.clip(mx.round(wide / divisor[..., None]), -LEVELS, LEVELS)
    return levels.astype(mx.int8), scales


def dequantize(levels: mx.array, scales: mx.array, dtype: mx.Dtype) -> mx.array:
    """Convert int8 levels `(…, dim)` and scales `(…)` to `dtype`; computed in float32."""
    wide = levels.astype(mx.float32) * scales.astype(mx.float32)[..., None]
    return wide.astype(dtype)
