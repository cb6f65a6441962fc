"""Layers that run on the CPU kernels and replace MLX's own.

The model computes in float32. Quantized weights are repacked and multiplied without dequantizing.
A norm takes one operation, and so do rotary positions.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.rope_utils import Llama3RoPE

from sgl_mlx.cpu_kernels.packing import Packed, fits, pack, unpack


def can_pack(model: nn.Module) -> bool:
    """True if the CPU kernels can multiply the weights of every quantized layer."""
    return all(_fits(m) for m in model.modules() if hasattr(m, "bits"))


def use_kernels(model: nn.Module, kernels: ModuleType) -> None:
    """Replace a model's layers in place by ones on the CPU kernels, where a kernel fits.

    The weights of the model must be float32 or quantized.
    """
    replaced: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if type(module) is nn.QuantizedLinear and _fits(module):
            replaced.append((name, PackedLinear(module, kernels)))
        elif type(module) is nn.QuantizedEmbedding and _fits(module):
            replaced.append((name, PackedEmbedding(module, kernels)))
        elif type(module) in _SUBCLASSES:
            module.__class__ = _SUBCLASSES[type(module)]
            object.__setattr__(module, "kernels", kernels)
    model.update_modules(tree_unflatten(replaced))


def _fits(module: nn.Module) -> bool:
    if type(module) not in (nn.QuantizedLinear, nn.QuantizedEmbedding):
        return False
    k = module.weight.shape[-1] * 32 // module.bits
    return module.mode == "affine" and fits(k, module.bits, module.group_size)


class PackedLinear(nn.Module):
    """Quantized linear layer from `x (…, K)` to `(…, N)` in float32."""

    def __init__(self, layer: nn.QuantizedLinear, kernels: ModuleType) -> None:
        super().__init__()
        self.q, self.scales, self.biases, *self._how = _pack(layer)
        if "bias" in layer:
            self.bias = layer.bias
        self._kernels = kernels

    @property
    def weight(self) -> mx.array:
        """Dequantized weights `(N, K)`, which a few architectures read."""
        return unpack(self._packed)

    @property
    def _packed(self) -> Packed:
        return Packed(self.q, self.scales, self.biases, *self._how)

    def __call__(self, x: mx.array) -> mx.array:
        y = _multiply(self._kernels, x, self._packed)
        return y + self.bias if "bias" in self else y


class PackedEmbedding(nn.Module):
    """Quantized embedding; its weights are packed when it is first used as the output layer."""

    def __init__(self, layer: nn.QuantizedEmbedding, kernels: ModuleType) -> None:
        super().__init__()
        self.table = layer
        self._packed: Packed | None = None
        self._kernels = kernels

    @property
    def weight(self) -> mx.array:
        """Dequantized weights `(N, K)`, which a few architectures read."""
        table = self.table
        dequantized: mx.array = mx.dequantize(
            table.weight, table.scales, table.biases, table.group_size, table.bits
        )
        return dequantized

    def __call__(self, tokens: mx.array) -> mx.array:
        embedded: mx.array = self.table(tokens)
        return embedded

    def as_linear(self, x: mx.array) -> mx.array:
        if self._packed is None:
            self._packed = _pack(self.table)
        return _multiply(self._kernels, x, self._packed)


class RMSNorm(nn.RMSNorm):
    """RMS norm on the CPU kernels for float32; other types are left to MLX."""

    kernels: ModuleType

    def __call__(self, x: mx.array) -> mx.array:
        if x.dtype != mx.float32 or self.weight.dtype != mx.float32:
            plain: mx.array = super().__call__(x)
            return plain
        out: mx.array = self.kernels.rms_norm(x, self.weight, self.eps)
        return out


class RoPE(nn.RoPE):
    """Rotary positions on the CPU kernels.

    Applies to float32 `(batch, heads, length, dim)`; other input is left to MLX.
    """

    kernels: ModuleType

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        if x.dtype != mx.float32 or x.ndim != 4:
            plain: mx.array = super().__call__(x, offset)
            return plain
        how = self.dims, self.traditional, self.base, self.scale
        return _turn(self.kernels, x, offset, *how, [])


class ScaledRoPE(Llama3RoPE):
    """Rotary positions with Llama 3's frequencies; runs on the CPU kernels as `RoPE` does."""

    kernels: ModuleType

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        if x.dtype != mx.float32 or x.ndim != 4:
            plain: mx.array = super().__call__(x, offset)
            return plain
        how = self.dims, self.traditional, 1.0, 1.0
        return _turn(self.kernels, x, offset, *how, self._listed)

    @cached_property
    def _listed(self) -> list[float]:
        listed: list[float] = self._freqs.tolist()
        return listed


_SUBCLASSES = {nn.RMSNorm: RMSNorm, nn.RoPE: RoPE, Llama3RoPE: ScaledRoPE}


def _pack(layer: nn.Module) -> Packed:
    return pack(layer.weight, layer.scales, layer.biases, layer.bits, layer.group_size)


def _multiply(kernels: ModuleType, x: mx.array, packed: Packed) -> mx.array:
    out: mx.array = kernels.linear(x.astype(mx.float32), *packed)
    return out


def _turn(kernels: ModuleType, x: mx.array, offset: Any, *how: Any) -> mx.array:
    at = offset if isinstance(offset, mx.array) else mx.array([offset], mx.int32)
    out: mx.array = kernels.rope(x, at.astype(mx.int32), *how)
    return out
