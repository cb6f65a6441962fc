"""M-RoPE: rotary positions of three numbers, a token's time, row and column.

Text has three equal numbers, for which M-RoPE is plain RoPE. So a language model is given one
position per token as long as a step shows no picture, and then uses mlx-lm's own rotary module.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.vision.qwen.config import Sections


def turn_by_grids(model: nn.Module, sections: Sections, source: str) -> bool:
    """Make a model's rotary modules take offsets `(3, tokens)` too, in place.

    Returns False, changing nothing, for a model with another kind of rotary position than plain
    RoPE, such as YaRN.

    Raises:
        CorruptModelError: when the sections are not as many as a module's frequencies.
    """
    attentions = [module for module in model.modules() if hasattr(module, "rope")]
    modules = [module.rope for module in attentions]
    if not modules or not all(isinstance(m, nn.RoPE) and not m.traditional for m in modules):
        return False
    axes = sections.axes()
    for module in modules:
        if 2 * len(axes) != module.dims:
            raise CorruptModelError(
                f"{source}: mrope_section is {list(sections.sizes)}, the language model turns "
                f"{module.dims} columns, so that the sections must sum to {module.dims // 2}"
            )
        turn(module, axes)
    return True


def turn(module: nn.Module, axes: list[int]) -> None:
    """Make one rotary module take offsets `(3, tokens)` too; `axes` has one for each frequency."""
    kind: Any = type(module)
    module.__class__ = _turning(kind)
    module._axes = axes


def axes_of(model: nn.Module) -> list[int] | None:
    """Return the axes of a model that `turn_by_grids` has prepared; None for another model."""
    modules = (m.rope for m in model.modules() if hasattr(m, "rope"))
    return next((m._axes for m in modules if hasattr(m, "_axes")), None)


@cache
def _turning(rope: Any) -> Any:
    def __call__(self: Any, x: mx.array, offset: Any = 0) -> mx.array:
        if not isinstance(offset, mx.array) or offset.ndim != 2:
            plain: mx.array = rope.__call__(self, x, offset)
            return plain
        return _turned(x, offset, self._axes, self.dims, self.base, self.scale)

    return type(rope.__name__, (rope,), {"__call__": __call__})


def _turned(
    x: mx.array, positions: mx.array, axes: list[int], dims: int, base: float, scale: float
) -> mx.array:
    """Turn the first `dims` columns of `x (tokens, heads, 1, width)`, in float32.

    Args:
        positions: `(3, tokens)`.
        axes: which of the three turns a frequency, for each of the `dims / 2` frequencies.
    """
    exponents = mx.arange(0, dims, 2).astype(mx.float32) / dims
    chosen = positions[mx.array(axes)].T.astype(mx.float32)
    angles = (chosen * scale * mx.power(base, -exponents))[:, None, None]
    cosines, sines = mx.cos(angles), mx.sin(angles)
    half = dims // 2
    left, right = (x[..., a : a + half].astype(mx.float32) for a in (0, half))
    pair = [left * cosines - right * sines, right * cosines + left * sines]
    turned = mx.concatenate(pair, axis=-1).astype(x.dtype)
    return turned if dims == x.shape[-1] else mx.concatenate([turned, x[..., dims:]], axis=-1)
