"""Multi-head latent attention (MLA, arXiv 2405.04434 §2.1) on the runtime's KV cache.

An MLA layer derives the keys and values of all heads from one latent a token. The cache keeps one
*entry* a token, `(rank + rope)` wide: the latent, then the rotary key that all heads share. Two
ways to attend to entries give the same result:

- absorbed: queries are multiplied into the space of latents. All heads attend to the entries as to
  one KV head, whose values are the first `rank` columns of its keys.
- expanded: keys and values of every head are computed from the entries.

mlx-lm's modules either have the products with a head's matrices (`embed_q` and `unembed_out`) or
one layer for both (`kv_b_proj`). On a ragged step these layers pass: queries arrive as the module
made them, and `Expansion` multiplies where the runtime finds it cheapest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

_WIDTHS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

Multiply = Callable[..., mx.array]
"""A product with one matrix for each head: `(x, transpose)`, as of mlx-lm's `MultiLinear`."""


class HeadMatrices(NamedTuple):
    """A matrix for each head, between latents `(rank,)` and what the head sees `(width,)`.

    Attributes:
        multiply: computes `x @ matrices`, or `x @ matrices.T` if `transpose`.
        rank_last: True if the matrices are `(heads, width, rank)`, else `(heads, rank, width)`.
    """

    multiply: Multiply
    rank_last: bool

    def from_latents(self, latents: mx.array) -> mx.array:
        """Map latents `(heads or 1, tokens, rank)` to `(heads, tokens, width)`."""
        return self.multiply(latents, transpose=self.rank_last)

    def to_latents(self, x: mx.array) -> mx.array:
        """Multiply `(heads, tokens, width)` by the transposed matrices: `(heads, tokens, rank)`."""
        return self.multiply(x, transpose=not self.rank_last)


Matrices = tuple[int, HeadMatrices, HeadMatrices]
"""The number of heads, and the matrices of keys and of values."""


@dataclass(frozen=True)
class Expansion:
    """The products of one attention module between entries and its heads.

    Attributes:
        heads: number of heads.
        rank, nope, rope, value_dim: widths of a latent, of a head's key without and with rotary
            positions, and of a head's value.
        keys, values: the matrices that make a head's key without positions, and its value.
        absorbs: True if the module asks for absorbed attention itself: it hands latents to its
            cache, and attends with queries in two parts.
    """

    heads: int
    rank: int
    nope: int
    rope: int
    value_dim: int
    keys: HeadMatrices
    values: HeadMatrices
    absorbs: bool

    @property
    def widths(self) -> tuple[int, ...]:
        return self.heads, self.rank, self.nope, self.rope, self.value_dim

    @property
    def saved_by_pair(self) -> int:
        """Products a head by which expanded attention of a query to a key is cheaper."""
        return 2 * self.rank + self.rope - (self.nope + self.rope + self.value_dim)

    @property
    def cost_of_key(self) -> int:
        """Products a head that the expansion of an entry takes."""
        return self.rank * (self.nope + self.value_dim)

    def absorb(self, queries: mx.array) -> mx.array:
        """Turn queries `(tokens, heads, nope + rope)` into queries of entries.

        Returns:
            `(tokens, heads, rank + rope)`.
        """
        plain, rotary = mx.split(queries, [self.nope], axis=-1)
        latent = self.keys.to_latents(plain.swapaxes(0, 1)).swapaxes(0, 1)
        return mx.concatenate([latent, rotary], axis=-1)

    def project(self, out: mx.array) -> mx.array:
        """Map absorbed attention's output, `rank` wide, to `(tokens, heads, value_dim)`."""
        return self.values.from_latents(out.swapaxes(0, 1)).swapaxes(0, 1)

    def expand(self, entries: mx.array) -> tuple[mx.array, mx.array]:
        """Compute every head's keys and values from entries `(tokens, 1, rank + rope)`.

        Returns:
            Keys `(tokens, heads, nope + rope)` and values `(tokens, heads, value_dim)`.
        """
        latents, rotary = mx.split(entries.swapaxes(0, 1), [self.rank], axis=-1)
        keys, values = (m.from_latents(latents) for m in (self.keys, self.values))
        rotary = mx.broadcast_to(rotary, (len(keys), *rotary.shape[1:]))
        keys = mx.concatenate([keys, rotary], axis=-1)
        return keys.swapaxes(0, 1), values.swapaxes(0, 1)


class Running:
    """One call of an MLA module on a ragged step.

    Attributes:
        expansion: of the module.
        latent: what was given to its `kv_b_proj`, `(tokens, 1, rank)`; None before, and for a
            module that `absorbs`.
    """

    def __init__(self, expansion: Expansion) -> None:
        self.expansion = expansion
        self.latent: mx.array | None = None
        self.stored = False

    def entry(self, keys: mx.array, values: mx.array) -> mx.array:
        """Make the entries `(tokens, 1, rank + rope)` of what the module hands to its cache.

        Args:
            keys, values: `(tokens, heads, 1, dim)`. Of a module that absorbs they are latents and
                rotary keys.
        """
        if self.expansion.absorbs:
            return mx.concatenate([keys[:, :, 0], values[:, :, 0]], axis=-1)
        assert self.latent is not None, "an MLA module stores keys before it computes them"
        return mx.concatenate([self.latent, keys[:, :1, 0, self.expansion.nope :]], axis=-1)


_running: ContextVar[Running | None] = ContextVar("MLA module", default=None)


def storing() -> Running | None:
    """Return the MLA module's call that has not stored its entries yet; None if there is none."""
    running = _running.get()
    return None if running is None or running.stored else running


def keep_latents(model: nn.Module, on_ragged_step: Callable[[], bool]) -> None:
    """Make a model's MLA modules keep entries on ragged steps, in place; others are left alone.

    Args:
        on_ragged_step: True while a ragged step runs; otherwise modules run as mlx-lm's do.
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
    by_head = [x.reshape(-1, width, x.shape[-1]) for x in parts]
    keys = _Half(multiply, [x[:, :nope] for x in by_head], how)
    values = _Half(multiply, [x[:, nope:] for x in by_head], how)
    return len(by_head[0]), HeadMatrices(keys, True), HeadMatrices(values, True)


class _Half:
    """Product with some rows of each head's part of `kv_b_proj`."""

    def __init__(self, multiply: Multiply, weights: list[mx.array], how: dict[str, Any]) -> None:
        self._multiply, self._how = multiply, how
        # quantized products would copy a view at every call
        self._weights = [mx.contiguous(x) for x in weights] if how else weights

    def __call__(self, x: mx.array, transpose: bool) -> mx.array:
        return self._multiply(x, *self._weights, transpose=transpose, **self._how)


def _matmul(x: mx.array, weight: mx.array, transpose: bool) -> mx.array:
    return x @ (weight.swapaxes(-1, -2) if transpose else weight)


@cache
def _announcing(cls: Any, on_ragged_step: Callable[[], bool]) -> Any:
    """Make a subclass whose calls are `storing()` on a ragged step."""

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

    The zeros stand for keys and values that nothing reads, apart from their rotary part.
    """

    def __call__(self: Any, x: mx.array) -> Any:
        running = _running.get()
        if running is None:
            return cls.__call__(self, x)
        running.latent = x
        to = running.expansion
        return mx.zeros((*x.shape[:-1], to.heads * (to.nope + to.value_dim)), x.dtype)

    return type(cls.__name__, (cls,), {"__call__": __call__})
