"""Redirects the attention function of mlx-lm's architectures to a ragged step's own.

Each architecture calls `scaled_dot_product_attention`, a global of its module. That global is
replaced once by a function that, while a ragged step runs on its thread, finds the `LayerCache`
whose keys it is given. Keys that are in none (derived from stored ones, as in MLA, or never stored)
cannot be attended by position, so they raise instead of giving wrong numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.layer_cache import LayerCache, Window

_ATTENTION = "scaled_dot_product_attention"
_caches: ContextVar[Sequence[LayerCache] | None] = ContextVar("caches of the step", default=None)


@contextmanager
def ragged_step(caches: Sequence[LayerCache]) -> Iterator[None]:
    """Send attention to these caches; on leaving, make sure that every layer's went there."""
    token = _caches.set(caches)
    try:
        yield
    finally:
        _caches.reset(token)
    for cache in caches:
        if not cache.attended:
            raise UnsupportedModelError(f"layer {cache.layer} does not attend through its cache")


def rebind_attention(model: nn.Module) -> None:
    """Replace the attention function in every module that defines a part of the model."""
    names = {cls.__module__ for part in model.modules() for cls in type(part).__mro__}
    for name in names:
        module = sys.modules[name]
        if name.startswith("mlx_lm.models.") and hasattr(module, _ATTENTION):
            _rebind(module)


def _rebind(module: ModuleType) -> None:
    original: Callable[..., mx.array] = getattr(module, _ATTENTION)
    if getattr(original, "redirects", False):
        return

    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any = None,
        scale: float = 1.0,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        caches = _caches.get()
        if caches is None:
            return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
        owner = next((c for c in caches if c.holds(keys, values)), None)
        if owner is None:
            raise UnsupportedModelError("attention is over other keys than the cache holds")
        if mask is not None and not isinstance(mask, Window):
            raise UnsupportedModelError("attention has a mask of its own")
        return owner.attend(queries, scale, mask, sinks)

    attend.redirects = True  # type: ignore[attr-defined]
    setattr(module, _ATTENTION, attend)
