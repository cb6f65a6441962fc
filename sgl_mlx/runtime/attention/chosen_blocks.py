"""Sparse attention to blocks of tokens: a KV head attends to the blocks that an indexer chooses.

An indexer is a small part of a layer that scores tokens.

Used for sequences with more tokens than the chosen blocks can hold (`BlockChoice.most_tokens`).
Tokens outside the chosen blocks are masked, not skipped, so attention costs as much as over all
tokens.
"""

from __future__ import annotations

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.runtime.attention import softmax as at
from sgl_mlx.runtime.attention.decode_private import PrivateBatch
from sgl_mlx.runtime.attention.row_by_row import MOST_SCORES, RowByRow


def attend_batch(
    batch: PrivateBatch,
    layer: int,
    queries: mx.array,
    options: AttentionOptions,
    choice: BlockChoice,
) -> mx.array:
    """Attend the members of a decode batch to the blocks that `choice` chooses.

    Returns `(members, heads, value_dim)`.
    """
    if batch.columns <= choice.most_tokens:
        return batch.fused(layer, queries, options)
    q = batch.pick(queries)
    mine = choice._replace(queries=batch.pick(choice.queries))
    keys, values, _ = batch.seen(layer, None, q.dtype)
    index_keys, _, _ = batch.seen(choice.layer, None, q.dtype)
    kept = _keep_in_columns(mine, mine.score(index_keys[:, 0]), batch.padding)
    mask = mx.repeat(kept, q.shape[1] // kept.shape[1], axis=1)[:, :, None]
    return mx.fast.scaled_dot_product_attention(
        q[:, :, None], keys, values, scale=options.scale, mask=mask, sinks=options.sinks
    )[:, :, 0]


def _keep_in_columns(choice: BlockChoice, scores: mx.array, padding: list[int]) -> mx.array:
    """Return which columns of a padded batch hold tokens of chosen blocks.

    Blocks are counted from each member's first token, since the columns before it are padding.

    Args:
        scores: the indexer's scores `(members, kv_heads, columns)`.
        padding: number of columns before each member's first token.

    Returns:
        Booleans of the shape of `scores`.
    """
    columns = scores.shape[-1]
    before = mx.array(padding)[:, None]
    place = mx.arange(columns)
    column_of = mx.minimum(place + before, columns - 1)[:, None]
    ordered = mx.take_along_axis(scores, column_of, axis=-1)
    ordered = mx.where((place + before < columns)[:, None], ordered, -mx.inf)
    kept = choice.keep(ordered, columns - 1 - before[:, 0])
    token_at = mx.maximum(place - before, 0)[:, None]
    return mx.take_along_axis(kept, token_at, axis=-1) & (place >= before)[:, None]


class BlockChunks(RowByRow):
    """Attention of prefill chunks in which a token attends to blocks that an indexer chooses."""

    def attend(
        self,
        layer: int,
        queries: mx.array,
        new: tuple[mx.array, mx.array, mx.array],
        options: AttentionOptions,
        choice: BlockChoice,
    ) -> mx.array:
        """Attend a layer's queries `(tokens, heads, dim)` to the blocks that `choice` chooses.

        Args:
            new: keys, values and indexer keys of the new tokens, each `(tokens, heads, dim)`.

        Returns:
            `(tokens, heads, value_dim)`.
        """
        outs = []
        for row, mine in enumerate(self.ranges):
            keys, values = self.whole(layer, row, (new[0][mine], new[1][mine]))
            index_keys, _ = self.whole(choice.layer, row, (new[2][mine], new[2][mine][..., :0]))
            q = at.group_heads(queries[mine], keys.shape[1], options.scale)
            by_head = keys.swapaxes(0, 1), values.swapaxes(0, 1)
            tile = max(1, MOST_SCORES // (len(keys) * queries.shape[1]))
            parts = [
                at.attend(q[:, t], *by_head, _bias(choice.of(mine).of(t), index_keys, before))
                for t, before in self.tiles(row, tile)
            ]
            outs.append(at.concatenate(parts).normalised(options.sinks))
        return mx.concatenate(outs)


def _bias(choice: BlockChoice, keys: mx.array, before: int) -> mx.array:
    """Compute the mask `(kv_heads, tokens, length)` of a tile, a run of a sequence's new tokens.

    It is 0 where a token attends to a key, else `MASKED`.

    Args:
        keys: indexer keys of all tokens of the sequence.
        before: number of the sequence's tokens before the tile.
    """
    own = before + mx.arange(len(choice.queries))
    hidden = mx.arange(len(keys)) > own[:, None]
    scores = mx.where(hidden[:, None], -mx.inf, choice.score(keys[:, 0]))
    return mx.where(choice.keep(scores, own), 0.0, at.MASKED).swapaxes(0, 1)
