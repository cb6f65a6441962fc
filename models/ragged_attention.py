"""Redirection of mlx-lm's attention to the runtime's, while a ragged step runs.

A ragged step computes one batch of requests of different lengths.

Each architecture calls `scaled_dot_product_attention`, a global of its module. That global is
replaced by a function that finds the `LayerCache` whose keys it is given and attends through it.
Outside a ragged step this function calls mlx-lm's own function. Keys that no `LayerCache` holds
(derived from stored keys, or never stored) raise `UnsupportedModelError` instead of giving wrong
numbers. MLA modules attend over the latent entries that they store (see `mla`).

gemma2 soft-caps its scores and so computes attention itself; its layers get a subclass that passes
the soft-cap to the `LayerCache`.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma2

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.layer_cache import LayerCache
from sgl_mlx.models.mla import keep_latents
from sgl_mlx.models.redirect import redirect

_caches: ContextVar[Sequence[LayerCache] | None] = ContextVar("caches of the step", default=None)


@contextmanager
def ragged_step(caches: Sequence[LayerCache]) -> Iterator[None]:
    """Make attention on this thread go through these caches, one per layer.

    Raises:
        UnsupportedModelError: on leaving, for a cache through which no attention went.
    """
    token = _caches.set(caches)
    try:
        yield
    finally:
        _caches.reset(token)
    for cache in caches:
        if not cache.attended:
            raise UnsupportedModelError(f"layer {cache.layer} does not attend through its cache")


def redirect_attention(model: nn.Module) -> None:
    """Make a model's attention go through the caches of `ragged_step`, in place."""
    redirect(model, "scaled_dot_product_attention", _redirected)
    keep_latents(model, _on_ragged_step)
    for layer in model.modules():
        if type(layer) is gemma2.Attention:
            layer.__class__ = SoftCappedAttention


def _on_ragged_step() -> bool:
    return _caches.get() is not None


def _redirected(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
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
        return owner.attend(queries, AttentionOptions(scale, sinks=sinks), mask)

    return attend


class SoftCappedAttention(gemma2.Attention):
    """gemma2's attention; on a ragged step, `x (tokens, 1, width)` attends through its cache."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if not isinstance(cache, LayerCache):
            plain: mx.array = super().__call__(x, mask, cache)
            return plain
        queries, keys, values = (
            project(x).reshape(len(x), 1, heads, self.head_dim).swapaxes(1, 2)
            for project, heads in (
                (self.q_proj, self.n_heads),
                (self.k_proj, self.n_kv_heads),
                (self.v_proj, self.n_kv_heads),
            )
        )
        cache.update_and_fetch(self.rope(keys, offset=cache.offset), values)
        options = AttentionOptions(self.scale, softcap=self.attn_logit_softcapping)
        out = cache.attend(self.rope(queries, offset=cache.offset), options, mask)
        projected: mx.array = self.o_proj(out.swapaxes(1, 2).reshape(len(x), 1, -1))
        return projected
