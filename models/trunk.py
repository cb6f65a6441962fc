"""Trunk of a model of mlx-lm: the part that computes hidden states, before the output layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_NAMES = ("model", "transformer", "backbone", "language_model")

_chosen: ContextVar[tuple[mx.array, int] | None] = ContextVar("chosen rows", default=None)


@contextmanager
def choosing(rows: mx.array, axis: int) -> Iterator[None]:
    """Make trunks prepared by `select_in_trunk` return only some hidden states, on this thread.

    Args:
        rows: indices along `axis` of the hidden states to return.
    """
    token = _chosen.set((rows, axis))
    try:
        yield
    finally:
        _chosen.reset(token)


def select_in_trunk(model: nn.Module) -> bool:
    """Make a model's trunk return only the hidden states that `choosing` selects.

    The output layer then computes no other logits. Returns False, changing nothing, for a model
    without a trunk. Otherwise the trunk becomes an instance of a subclass of its own class:
    parameters, attributes and the way the model calls the trunk stay as they are. All adapters
    around one model share that subclass.
    """
    target = trunk_of(model)
    if target is model:
        return False
    trunk: Any = type(target)
    if not hasattr(trunk, "selects_rows"):
        target.__class__ = _selecting(trunk)
    return True


@cache
def _selecting(trunk: Any) -> Any:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden = trunk.__call__(self, *args, **kwargs)
        chosen = _chosen.get()
        return hidden if chosen is None else mx.take(hidden, chosen[0], axis=chosen[1])

    return type(trunk.__name__, (trunk,), {"__call__": __call__, "selects_rows": True})


def trunk_of(model: nn.Module) -> nn.Module:
    """Return the part of a model that computes hidden states; the model itself if it has none."""
    inner = (getattr(model, name, None) for name in _NAMES)
    trunk = next((m for m in inner if isinstance(m, nn.Module)), None)
    return model if trunk is None else trunk_of(trunk)
