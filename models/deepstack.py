"""DeepStack: features of pictures that are added to the outputs of a model's first layers.

arXiv 2406.04334; Qwen3-VL adds the states of some layers of its vision tower.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_added: ContextVar[mx.array | None] = ContextVar("features to add to layers", default=None)


@contextmanager
def adding(features: mx.array | None) -> Iterator[None]:
    """Make prepared layers add features to their outputs, on this thread.

    Args:
        features: `(tokens, layers * width)`, one layer's after another; None adds nothing.
    """
    token = _added.set(features)
    try:
        yield
    finally:
        _added.reset(token)


def add_to_layers(model: nn.Module, count: int) -> None:
    """Prepare the first `count` layers of a model for `adding`, in place."""
    for index, layer in enumerate(model.layers[:count]):
        kind: Any = type(layer)
        layer.__class__ = _adding(kind, index)


def prepared_layers(model: nn.Module) -> int:
    """Count the layers that `add_to_layers` prepared."""
    return sum(hasattr(layer, "adds_features") for layer in getattr(model, "layers", ()))


@cache
def _adding(layer: Any, index: int) -> Any:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> mx.array:
        hidden: mx.array = layer.__call__(self, *args, **kwargs)
        features = _added.get()
        if features is None:
            return hidden
        width = hidden.shape[-1]
        mine = features[:, index * width : (index + 1) * width]
        return hidden + mine.reshape(hidden.shape).astype(hidden.dtype)

    return type(layer.__name__, (layer,), {"__call__": __call__, "adds_features": True})
