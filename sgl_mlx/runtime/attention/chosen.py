"""Sparse attention over latents (MLA): a token attends only to tokens that an indexer chooses.

An indexer is a small part of a layer that scores tokens.

Used for sequences (rows) with more tokens than the indexer chooses (`LayerShape.top_keys`). Shorter
sequences attend to all their tokens. A row's entries and indexer keys are gathered without sharing
prefixes between rows. The indexer scores all tokens. Decoding then computes attention for the
chosen tokens only; prefill computes it for all tokens and masks those that are not chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.models.latents import IndexQueries, LatentQueries
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.chosen_blocks import attend_batch
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.decode_private import PrivateBatch
from sgl_mlx.runtime.attention.row_by_row import MOST_SCORES, RowByRow
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.scheduler.plan import Row


class ChosenEpoch(Epoch):
    """Attention of decode steps: a token attends to tokens or blocks that an indexer chooses."""

    def __init__(self, pool: KVPool, rows: Sequence[Row], width: int) -> None:
        super().__init__(pool, rows, width, min_shared=sys.maxsize)

    def attend_latents(
        self, layer: int, queries: LatentQueries, options: AttentionOptions
    ) -> mx.array:
        """Attend a layer's queries to the tokens that `queries.choice` chooses; None chooses all.

        Returns `(rows, heads, value_dim)`.
        """
        choice, absorbed = queries.choice, queries.absorbed
        if choice is None:
            return super().attend_latents(layer, queries, options)
        out = self.in_batches(
            layer, lambda batch: _attend_chosen(batch, layer, absorbed, options, choice)
        )
        return queries.expansion.project(out)

    def attend_blocks(
        self, layer: int, queries: mx.array, options: AttentionOptions, choice: BlockChoice
    ) -> mx.array:
        """Attend a layer's queries `(rows, heads, dim)` to the blocks that `choice` chooses."""
        return self.in_batches(
            layer, lambda batch: attend_batch(batch, layer, queries, options, choice)
        )


def _attend_chosen(
    batch: PrivateBatch,
    layer: int,
    queries: mx.array,
    options: AttentionOptions,
    index: IndexQueries,
) -> mx.array:
    """Attend absorbed queries (see `latent.py`) to the keys that `index` chooses.

    Returns `(members, heads, rank)`; members are the sequences of the batch.
    """
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


class ChosenChunks(RowByRow):
    """Attention of prefill chunks in which a token attends to tokens that an indexer chooses."""

    def attend(
        self,
        layer: int,
        queries: LatentQueries,
        new: tuple[mx.array, mx.array],
        options: AttentionOptions,
    ) -> mx.array:
        """Attend the queries of a layer with an indexer; `queries.choice` must not be None.

        Args:
            new: latent entries and indexer keys of the new tokens, each `(tokens, 1, dim)`.

        Returns:
            `(tokens, heads, value_dim)`.
        """
        assert queries.choice is not None, "without a choice every token is attended to"
        rank, outs = queries.expansion.rank, []
        for row, mine in enumerate(self.ranges):
            choice, entries = queries.choice.of(mine), new[0][mine]
            keys, values = self.whole(layer, row, (entries, entries[..., :rank]))
            index_keys, _ = self.whole(choice.layer, row, (new[1][mine], new[1][mine][..., :0]))
            q = at.group_heads(queries.of(mine).absorbed, 1, options.scale)
            by_head = keys.swapaxes(0, 1), values.swapaxes(0, 1)
            tile = max(1, MOST_SCORES // (len(keys) * q.shape[2]))
            parts = [
                at.attend(q[:, t], *by_head, _bias(choice.of(t), index_keys[:, 0], before))
                for t, before in self.tiles(row, tile)
            ]
            outs.append(at.concatenate(parts).normalised())
        return queries.expansion.project(mx.concatenate(outs))


def _bias(choice: IndexQueries, keys: mx.array, before: int) -> mx.array:
    """Compute the mask `(tokens, length)` of a tile, which is a run of a sequence's new tokens.

    The mask is 0 where a token attends to a key, else `MASKED`.

    Args:
        keys: indexer keys `(length, dim)` of all tokens of the sequence.
        before: number of the sequence's tokens before the tile.
    """
    causal = at.causal_bias(len(choice.queries), before, len(keys))
    best = _best(choice.score(keys) + causal, min(choice.top, len(keys)))
    chosen = mx.put_along_axis(mx.zeros(causal.shape, mx.bool_), best, mx.array(True), axis=-1)
    return mx.where(chosen, causal, at.MASKED)


def _best(scores: mx.array, top: int) -> mx.array:
    """Return the indices of the `top` highest scores along the last axis."""
    return mx.argpartition(scores, kth=-top, axis=-1)[..., -top:]
