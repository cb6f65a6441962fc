"""Linear layers with a LoRA adapter, also those whose inputs are divided among ranks."""

# mypy: allow-subclassing-any
from __future__ import annotations

import copy

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import QuantizedShardedToAllLinear, ShardedToAllLinear


class AdaptedLinear(nn.Module):
    """A linear layer `y = base(x) + scale (x A) B`, with A `(in, rank)` and B `(rank, out)`."""

    def __init__(self, base: nn.Module, a: mx.array, b: mx.array, scale: float) -> None:
        super().__init__()
        self.base = base
        self.a = a
        self.b = b
        self._scale = scale

    @property
    def weight(self) -> mx.array:
        """Weights of the layer without the addition, which a few architectures read."""
        weight: mx.array = self.base.weight
        return weight

    def __call__(self, x: mx.array) -> mx.array:
        added = (x.astype(self.a.dtype) @ self.a) @ self.b
        y: mx.array = self.base(x) + (self._scale * added).astype(x.dtype)
        return y


class SummedLinear(nn.Module):
    """A linear layer of which each of several ranks has some input columns, with an adapter.

    The ranks' products are added up once, after each has added its part of the adapter's.

    Args:
        base: the layer without the adapter, which adds up the products itself.
    """

    def __init__(self, base: nn.Module, a: mx.array, b: mx.array, scale: float) -> None:
        super().__init__()
        self.product = AdaptedLinear(_without_sum(base), a, b, scale)
        if "bias" in base:
            self.bias = base.bias
        self._group = base.group

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = mx.distributed.all_sum(self.product(x), group=self._group)
        return y + self.bias if "bias" in self else y


def adapted_layer(base: nn.Module, a: mx.array, b: mx.array, scale: float) -> nn.Module:
    """Return a linear layer with an adapter; A and B are this rank's share, as `base` is."""
    summed = type(base) in _WITHOUT_SUM
    return (SummedLinear if summed else AdaptedLinear)(base, a, b, scale)


def _without_sum(base: nn.Module) -> nn.Module:
    """Return a layer that multiplies by this rank's weights alone, which it shares with `base`."""
    part = copy.copy(base)
    part.pop("bias", None)
    part.__class__ = _WITHOUT_SUM[type(base)]
    return part


_WITHOUT_SUM: dict[type, type[nn.Module]] = {
    ShardedToAllLinear: nn.Linear,
    QuantizedShardedToAllLinear: nn.QuantizedLinear,
}
"""Layers that add up what all ranks computed, and the layers that multiply as they do."""
