"""Layers that run on the CPU kernels and replace MLX's own, in a model that computes in float32.

Quantized weights are repacked (`packed_layers`). A norm, rotary positions and a short convolution
take one operation each.
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

from sgl_mlx.models.packed_layers import packed_layer


def use_kernels(model: nn.Module, kernels: ModuleType) -> None:
    """Replace a model's layers in place by layers on the CPU kernels, where a kernel fits.

    The weights of the model must be float32 or quantized.
    """
    replaced: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if (packed := packed_layer(module, kernels)) is not None:
            replaced.append((name, packed))
        elif type(module) in _SUBCLASSES and _is_causal(module):
            module.__class__ = _SUBCLASSES[type(module)]
            object.__setattr__(module, "kernels", kernels)
    model.update_modules(tree_unflatten(replaced))


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
        return _rotate(self.kernels, x, offset, *how, [])


class ScaledRoPE(Llama3RoPE):
    """Rotary positions with Llama 3's frequencies; runs on the CPU kernels as `RoPE` does."""

    kernels: ModuleType

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        if x.dtype != mx.float32 or x.ndim != 4:
            plain: mx.array = super().__call__(x, offset)
            return plain
        how = self.dims, self.traditional, 1.0, 1.0
        return _rotate(self.kernels, x, offset, *how, self._listed)

    @cached_property
    def _listed(self) -> list[float]:
        listed: list[float] = self._freqs.tolist()
        return listed


class ShortConvolution(nn.Conv1d):
    """Depthwise convolution along `length`, without padding.

    The input is `(rows, length + width - 1, channels)`, the output `(rows, length, channels)`.
    Runs on the CPU kernels for float32; other types are left to MLX.
    """

    kernels: ModuleType

    def __call__(self, x: mx.array) -> mx.array:
        if x.dtype != mx.float32 or self.weight.dtype != mx.float32:
            plain: mx.array = super().__call__(x)
            return plain
        out: mx.array = self.kernels.short_convolution(x, self._by_position, self.get("bias"))
        return out

    @cached_property
    def _by_position(self) -> mx.array:
        """Weights `(width, channels)`; MLX has them as `(channels, width, 1)`."""
        return mx.contiguous(self.weight[..., 0].T)


_SUBCLASSES = {
    nn.RMSNorm: RMSNorm,
    nn.RoPE: RoPE,
    Llama3RoPE: ScaledRoPE,
    nn.Conv1d: ShortConvolution,
}


def _is_causal(module: nn.Module) -> bool:
    """Return True unless `module` is a convolution that `ShortConvolution` cannot replace."""
    if type(module) is not nn.Conv1d:
        return True
    channels, _, depth = module.weight.shape
    plain = module.stride == module.dilation == 1 and module.padding == 0
    return bool(plain and depth == 1 and module.groups == channels)


def _rotate(kernels: ModuleType, x: mx.array, offset: Any, *how: Any) -> mx.array:
    at = offset if isinstance(offset, mx.array) else mx.array([offset], mx.int32)
    out: mx.array = kernels.rope(x, at.astype(mx.int32), *how)
    return out
