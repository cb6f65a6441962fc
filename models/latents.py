"""Multi-head latent attention (MLA, arXiv 2405.04434 §2.1): products with latents.

An MLA layer derives the keys and values of all heads from one latent per token. The cache keeps one
*entry* per token, `(rank + rope)` wide: the latent, then the rotary key that all heads share. Two
ways to attend to entries give the same result:

- absorbed: queries are multiplied into the space of latents. All heads attend to the entries as to
  one KV head, whose values are the first `rank` columns of its keys.
- expanded: keys and values of every head are computed from the entries.

Some models attend to chosen tokens only (sparse attention): `IndexQueries` score them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

Multiply = Callable[..., mx.array]
"""Function `(x, transpose)` that multiplies by one matrix per head: mlx-lm's `MultiLinear`."""


class HeadMatrices(NamedTuple):
    """One matrix per head that maps a latent `(rank,)` to the head's key or value `(width,)`.

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


@dataclass(frozen=True)
class Expansion:
    """Conversions of one MLA module between latent entries and its heads' keys and values.

    Attributes:
        heads: number of heads.
        rank, nope, rope, value_dim: widths of a latent, of a head's key without and with rotary
            positions, and of a head's value.
        keys, values: the matrices that make a head's key without positions, and its value.
        absorbs: True if mlx-lm's module itself computes absorbed attention: it hands latents to its
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
        """Multiplications per head that expanded attention saves for each query-key pair."""
        return 2 * self.rank + self.rope - (self.nope + self.rope + self.value_dim)

    @property
    def cost_of_key(self) -> int:
        """Multiplications per head that expanding one entry takes."""
        return self.rank * (self.nope + self.value_dim)

    def absorb(self, queries: mx.array) -> mx.array:
        """Multiply queries `(tokens, heads, nope + rope)` into the space of latent entries.

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


class IndexQueries(NamedTuple):
    """One layer's indexer queries, which choose the tokens that attention reads.

    Source: DeepSeek-V3.2, arXiv 2512.02556 §2.1.

    Attributes:
        layer: index of the layer cache that holds the indexer's keys `(tokens, 1, dim)`.
        queries: the indexer's queries `(tokens, index_heads, dim)`.
        weights: factor of each indexer head's scores, `(tokens, index_heads)`.
        top: number of tokens that a query attends to; the highest scores win.
    """

    layer: int
    queries: mx.array
    weights: mx.array
    top: int

    def score(self, keys: mx.array) -> mx.array:
        """Score the indexer's keys `(length, dim)`.

        Keys `(tokens, length, dim)` give each query keys of its own.

        Returns:
            `(tokens, length)`.
        """
        products = mx.maximum(self.queries @ keys.swapaxes(-1, -2), 0)
        return (products * self.weights[..., None]).sum(axis=-2)

    def of(self, tokens: slice) -> IndexQueries:
        """Return the queries of a slice of the tokens."""
        return self._replace(queries=self.queries[tokens], weights=self.weights[tokens])


class LatentQueries(NamedTuple):
    """The queries of one MLA layer.

    Attributes:
        by_head: `(tokens, heads, nope + rope)`.
        expansion: the layer's conversions between entries and heads.
        choice: the indexer's queries, which choose the tokens to attend to; None for every token.
    """

    by_head: mx.array
    expansion: Expansion
    choice: IndexQueries | None = None

    @property
    def absorbed(self) -> mx.array:
        """Queries multiplied into the space of entries, `(tokens, heads, rank + rope)`."""
        return self.expansion.absorb(self.by_head)

    def of(self, tokens: slice) -> LatentQueries:
        """Return the queries of a slice of the tokens."""
        choice = None if self.choice is None else self.choice.of(tokens)
        return self._replace(by_head=self.by_head[tokens], choice=choice)
