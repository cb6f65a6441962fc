"""Trunk of a model of mlx-lm: the part that computes hidden states, before the output layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

_NAMES = ("model", "transformer", "backbone", "language_model")


class _Choice(NamedTuple):
    rows: mx.array
    axis: int
    kept: list[mx.array] | None


_chosen: ContextVar[_Choice | None] = ContextVar("chosen rows", default=None)


@contextmanager
def choosing(rows: mx.array, axis: int, kept: list[mx.array] | None = None) -> Iterator[None]:
    """Make trunks prepared by `select_in_trunk` return only some hidden states, on this thread.

    Args:
        rows: indices along `axis` of the hidden states to return.
        kept: receives all hidden states; None if they are not needed.
    """
    token = _chosen.set(_Choice(rows, axis, kept))
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
        if chosen is None:
            return hidden
        if chosen.kept is not None:
            chosen.kept.append(hidden)
        return mx.take(hidden, chosen.rows, axis=chosen.axis)

    return type(trunk.__name__, (trunk,), {"__call__": __call__, "selects_rows": True})


def is_pipelined(model: nn.Module) -> bool:
    """Return True if other ranks have the other layers of a model."""
    return int(getattr(getattr(model, "model", None), "pipeline_size", 1)) > 1


def trunk_of(model: nn.Module) -> nn.Module:
    """Return the part of a model that computes hidden states; the model itself if it has none."""
    inner = (getattr(model, name, None) for name in _NAMES)
    trunk = next((m for m in inner if isinstance(m, nn.Module)), None)
    return model if trunk is None else trunk_of(trunk)
