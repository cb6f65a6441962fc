"""Sparse attention over latents: each token attends to the tokens that its indexer chooses.

Used for sequences with more tokens than an indexer's `top` (`LayerShape.top_keys`). Shorter ones
attend to every token, as everywhere else. A row's entries and indexer keys are gathered as in a
decode epoch without shared stretches; scores are computed for all of them, attention for the
chosen ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.latents import IndexQueries, LatentQueries
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.decode_private import PrivateBatch
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

_MOST_SCORES = 2**24
"""Most scores of a tile of a chunk's tokens."""


class ChosenEpoch(Epoch):
    """Decode epoch in which each row attends to the tokens that its indexer chooses."""

    def __init__(self, pool: KVPool, rows: Sequence[Row], width: int) -> None:
        super().__init__(pool, rows, width, min_shared=sys.maxsize)

    def attend_latents(
        self, layer: int, queries: LatentQueries, options: AttentionOptions
    ) -> mx.array:
        """Attend a layer's queries to the tokens that they choose; `(rows, heads, value_dim)`."""
        choice, absorbed = queries.choice, queries.absorbed
        if choice is None:
            return super().attend_latents(layer, queries, options)
        out = self.in_batches(
            layer, lambda batch: _attend_chosen(batch, layer, absorbed, options, choice)
        )
        return queries.expansion.project(out)


def _attend_chosen(
    batch: PrivateBatch,
    layer: int,
    queries: mx.array,
    options: AttentionOptions,
    index: IndexQueries,
) -> mx.array:
    """Attend a batch's members to the keys that they choose; `(members, heads, value_dim)`."""
    q = batch.pick(queries)
    mine = index._replace(queries=batch.pick(index.queries), weights=batch.pick(index.weights))
    keys, values, bias = batch.seen(layer, None, q.dtype)
    index_keys, _, _ = batch.seen(index.layer, None, q.dtype)
    if batch.columns > index.top:
        scores = mine.score(index_keys[:, 0])
        chosen = _best(scores if bias is None else scores + bias, index.top)
        at_chosen = chosen[:, None, :, None]
        keys, values = (mx.take_along_axis(x, at_chosen, axis=2) for x in (keys, values))
        bias = None if bias is None else mx.take_along_axis(bias, chosen, axis=1)
    mask = None if bias is None else bias[:, None, None]
    return mx.fast.scaled_dot_product_attention(
        q[:, :, None], keys, values, scale=options.scale, mask=mask
    )[:, :, 0]


class ChosenChunks:
    """Attention of prefill chunks, each token over those that its indexer chooses.

    Args:
        rows: the chunks' rows.
    """

    def __init__(self, pool: KVPool, rows: Sequence[Row]) -> None:
        self._pool = pool
        self._prefixes = [SlotIndex(row.prefix) if row.prefix else None for row in rows]
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row.tokens))
        self._ranges = list(pairwise(starts))

    def attend(
        self,
        layer: int,
        queries: LatentQueries,
        new: tuple[mx.array, mx.array],
        options: AttentionOptions,
    ) -> mx.array:
        """Attend a layer's queries, which have a choice.

        Args:
            new: entries and indexer's keys of the new tokens, each `(tokens, 1, dim)`.

        Returns:
            `(tokens, heads, value_dim)`.
        """
        assert queries.choice is not None, "without a choice every token is attended to"
        outs = []
        for prefix, (first, last) in zip(self._prefixes, self._ranges, strict=True):
            mine, choice = slice(first, last), queries.choice.of(slice(first, last))
            entries = self._whole(layer, prefix, new[0][mine])
            chooser = _Chooser(choice, self._whole(choice.layer, prefix, new[1][mine]))
            absorbed = queries.of(mine).absorbed
            outs.append(self._attend_row(layer, absorbed, entries, options, chooser))
        return queries.expansion.project(mx.concatenate(outs))

    def _attend_row(
        self,
        layer: int,
        queries: mx.array,
        keys: mx.array,
        options: AttentionOptions,
        chooser: _Chooser,
    ) -> mx.array:
        values = keys[..., : self._pool.layers[layer].value_dim]
        by_head = keys.swapaxes(0, 1), values.swapaxes(0, 1)
        q = at.group_heads(queries, 1, options.scale)
        tile = max(1, _MOST_SCORES // (len(keys) * queries.shape[1]))
        parts = [
            at.attend(q[:, mine], *by_head, chooser.bias(mine))
            for start in range(0, len(queries), tile)
            for mine in [slice(start, min(start + tile, len(queries)))]
        ]
        return at.concatenate(parts).normalised()

    def _whole(self, layer: int, prefix: SlotIndex | None, new: mx.array) -> mx.array:
        """Join a layer's keys of a prefix and of the new tokens, `(length, 1, dim)`."""
        if prefix is None:
            return new
        return mx.concatenate([self._pool.gather(layer, prefix)[0], new])


class _Chooser:
    """Choice of the tokens that the last tokens of a sequence attend to.

    Args:
        index: of the last tokens.
        keys: `(length, 1, dim)`, of all tokens.
    """

    def __init__(self, index: IndexQueries, keys: mx.array) -> None:
        self._index, self._keys = index, keys[:, 0]
        self._before = len(keys) - len(index.queries)

    def bias(self, tokens: slice) -> mx.array:
        """Compute the mask `(tokens, length)`: 0 for a chosen token, else `MASKED`."""
        length = len(self._keys)
        causal = at.causal_bias(tokens.stop - tokens.start, self._before + tokens.start, length)
        scores = self._index.of(tokens).score(self._keys) + causal
        best = _best(scores, min(self._index.top, length))
        chosen = mx.put_along_axis(mx.zeros(scores.shape, mx.bool_), best, mx.array(True), axis=-1)
        return mx.where(chosen, causal, at.MASKED)


def _best(scores: mx.array, top: int) -> mx.array:
    """Return the indices of the `top` highest scores along the last axis."""
    return mx.argpartition(scores, kth=-top, axis=-1)[..., -top:]
