"""mlx-lm's modules of multi-head latent attention (MLA) on the runtime's KV cache.

MLA modules are found by their structure. A module has either products with one matrix per head
(`embed_q` and `unembed_out`) or one layer that makes the keys and values of all heads
(`kv_b_proj`). On a ragged step these layers do not multiply. `latents.Expansion` multiplies
instead, where the runtime finds it cheapest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.models.latents import Expansion, HeadMatrices, IndexQueries, Multiply

_WIDTHS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_INDEXER = ("wq_b", "wk", "k_norm", "weights_proj", "rope")

Matrices = tuple[int, HeadMatrices, HeadMatrices]
"""The number of heads, and the matrices of keys and of values."""


class Running:
    """One call of an MLA module on a ragged step.

    Attributes:
        expansion: the module's conversions between entries and heads.
        latent: input of the module's `kv_b_proj`, `(tokens, 1, rank)`; None before `kv_b_proj` is
            called, and for a module that `absorbs`.
        index: the queries of the module's indexer; None before they are made, and without indexer.
        stored: True once the module's entries are stored.
    """

    def __init__(self, expansion: Expansion) -> None:
        self.expansion = expansion
        self.latent: mx.array | None = None
        self.index: IndexQueries | None = None
        self.stored = False

    def entry(self, keys: mx.array, values: mx.array) -> mx.array:
        """Make the entries `(tokens, 1, rank + rope)` from what the module hands to its cache.

        Args:
            keys, values: `(tokens, heads, 1, dim)`; from a module that absorbs, the latents and
                the rotary keys.
        """
        if self.expansion.absorbs:
            return mx.concatenate([keys[:, :, 0], values[:, :, 0]], axis=-1)
        assert self.latent is not None, "an MLA module stores keys before it computes them"
        return mx.concatenate([self.latent, keys[:, :1, 0, self.expansion.nope :]], axis=-1)


_running: ContextVar[Running | None] = ContextVar("MLA module", default=None)


def running() -> Running | None:
    """Return the MLA module's call in progress on a ragged step; None if there is none."""
    return _running.get()


def keep_latents(model: nn.Module, on_ragged_step: Callable[[], bool]) -> None:
    """Make a model's MLA modules store latent entries on ragged steps, in place.

    Args:
        on_ragged_step: returns True while a ragged step runs; at other times the modules run as
            mlx-lm's do.
    """
    for module in model.modules():
        if hasattr(module, "expansion") or not all(hasattr(module, name) for name in _WIDTHS):
            continue
        if "embed_q" in module and "unembed_out" in module:
            _keep(module, _by_head(module), dict.fromkeys(("embed_q", "unembed_out"), _passing))
        elif "kv_b_proj" in module and "bias" not in module.kv_b_proj:
            _keep(module, _halves(module), {"kv_b_proj": _remembering})
        else:
            continue
        if all(hasattr(module.get("indexer"), part) for part in _INDEXER):
            indexer: Any = type(module.indexer)
            module.indexer.__class__ = _handing_over(indexer)
        kind: Any = type(module)
        module.__class__ = _announcing(kind, on_ragged_step)


def _keep(module: Any, matrices: Matrices, layers: dict[str, Callable[[Any], Any]]) -> None:
    heads, keys, values = matrices
    rank, nope, rope, value_dim = (getattr(module, name) for name in _WIDTHS)
    absorbs = "embed_q" in layers
    module.expansion = Expansion(heads, rank, nope, rope, value_dim, keys, values, absorbs)
    for name, subclass in layers.items():
        module[name].__class__ = subclass(type(module[name]))


def _by_head(module: Any) -> Matrices:
    embed, unembed = module.embed_q, module.unembed_out
    return (
        len(embed.weight),
        HeadMatrices(partial(type(embed).__call__, embed), rank_last=False),
        HeadMatrices(partial(type(unembed).__call__, unembed), rank_last=True),
    )


def _halves(module: Any) -> Matrices:
    """Split `kv_b_proj` into the matrices of keys and of values; packed weights stay packed."""
    layer, nope = module.kv_b_proj, module.qk_nope_head_dim
    width = nope + module.v_head_dim
    multiply: Multiply = _matmul
    how: dict[str, Any] = {}
    parts = [layer.weight]
    if isinstance(layer, nn.QuantizedLinear):
        multiply = mx.quantized_matmul
        how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        parts = [x for x in (layer.weight, layer.scales, layer.get("biases")) if x is not None]

    def by_head() -> list[mx.array]:
        return [x.reshape(-1, width, x.shape[-1]) for x in parts]

    keys = _Half(multiply, lambda: [x[:, :nope] for x in by_head()], how)
    values = _Half(multiply, lambda: [x[:, nope:] for x in by_head()], how)
    return len(layer.weight) // width, HeadMatrices(keys, True), HeadMatrices(values, True)


class _Half:
    """Product with some rows of each head's part of `kv_b_proj`.

    The rows are computed at the first call, on the thread that needs them. MLX cannot compute a
    lazy array on another thread than the one that made it, and engines may share a model.
    """

    def __init__(
        self, multiply: Multiply, rows: Callable[[], list[mx.array]], how: dict[str, Any]
    ) -> None:
        self._multiply, self._rows, self._how = multiply, rows, how
        self._weights: list[mx.array] | None = None

    def __call__(self, x: mx.array, transpose: bool) -> mx.array:
        weights = self._weights
        if weights is None:
            # quantized products would copy a view at every call
            weights = [mx.contiguous(w) if self._how else w for w in self._rows()]
            mx.eval(weights)
            self._weights = weights
        return self._multiply(x, *weights, transpose=transpose, **self._how)


def _matmul(x: mx.array, weight: mx.array, transpose: bool) -> mx.array:
    return x @ (weight.swapaxes(-1, -2) if transpose else weight)


@cache
def _announcing(cls: Any, on_ragged_step: Callable[[], bool]) -> Any:
    """Make a subclass whose calls set what `running()` returns, on ragged steps."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not on_ragged_step():
            return cls.__call__(self, *args, **kwargs)
        token = _running.set(Running(self.expansion))
        try:
            return cls.__call__(self, *args, **kwargs)
        finally:
            _running.reset(token)

    return type(cls.__name__, (cls,), {"__call__": __call__})


@cache
def _passing(cls: Any) -> Any:
    """Make a subclass that returns its input on a ragged step."""

    def __call__(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        return cls.__call__(self, x, *args, **kwargs) if _running.get() is None else x

    return type(cls.__name__, (cls,), {"__call__": __call__})


@cache
def _remembering(cls: Any) -> Any:
    """Make a subclass that on a ragged step keeps its input, the latents, and returns zeros.

    The zeros stand for keys without positions and for values; nothing reads them.
    """

    def __call__(self: Any, x: mx.array) -> Any:
        running = _running.get()
        if running is None:
            return cls.__call__(self, x)
        running.latent = x
        to = running.expansion
        return mx.zeros((*x.shape[:-1], to.heads * (to.nope + to.value_dim)), x.dtype)

    return type(cls.__name__, (cls,), {"__call__": __call__})


@cache
def _handing_over(cls: Any) -> Any:
    """Make a subclass of an indexer that hands its queries to `running()` on a ragged step.

    Calls of the subclass store the indexer's keys and return None. With None, the MLA module around
    the indexer attends without a choice of its own.
    """

    def __call__(self: Any, x: mx.array, qr: mx.array, mask: Any, cache: Any = None) -> Any:
        module = _running.get()
        if module is None:
            return cls.__call__(self, x, qr, mask, cache)
        queries = self.wq_b(qr).reshape(len(x), 1, self.n_heads, -1).swapaxes(1, 2)
        rotated = self.rope(queries, offset=cache.offset)[:, :, 0]
        cache.store_keys(self.rope(self.k_norm(self.wk(x))[:, None], offset=cache.offset))
        weights = self.weights_proj(x)[:, 0] * (self.n_heads**-0.5 * self.softmax_scale)
        module.index = IndexQueries(cache.layer, rotated, weights, self.index_topk)
        return None

    return type(cls.__name__, (cls,), {"__call__": __call__})
