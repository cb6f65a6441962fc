"""Sparse attention over latents: each token attends to the tokens that its indexer chooses.

Used for sequences with more tokens than an indexer's `top` (`LayerShape.top_keys`). Shorter ones
attend to every token, as everywhere else. A row's entries and indexer keys are gathered as in a
decode epoch without shared stretches; scores are computed for all of them, attention for the
chosen ones.
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


class ChosenChunks(RowByRow):
    """Attention of prefill chunks, each token over those that its indexer chooses."""

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
    """Compute a tile's mask `(tokens, length)`: 0 for a chosen token, else `MASKED`.

    Args:
        keys: `(length, dim)`, of all tokens of the sequence.
        before: number of tokens before the tile.
    """
    causal = at.causal_bias(len(choice.queries), before, len(keys))
    best = _best(choice.score(keys) + causal, min(choice.top, len(keys)))
    chosen = mx.put_along_axis(mx.zeros(causal.shape, mx.bool_), best, mx.array(True), axis=-1)
    return mx.where(chosen, causal, at.MASKED)


def _best(scores: mx.array, top: int) -> mx.array:
    """Return the indices of the `top` highest scores along the last axis."""
    return mx.argpartition(scores, kth=-top, axis=-1)[..., -top:]
