"""Choice of the blocks of tokens that a query attends to, in MiniMax-M3's sparse attention."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class BlockChoice(NamedTuple):
    """The queries of a layer's indexer (a part that scores tokens), which choose blocks of tokens.

    A block's score is the highest score of its tokens. Each KV head attends to the `top` blocks
    with the highest scores. The latest `local` blocks are always chosen.

    Attributes:
        layer: index of the layer cache that holds the indexer's keys `(tokens, 1, dim)`.
        queries: the indexer's queries `(tokens, kv_heads, dim)`.
        block: number of tokens in a block.
        top: most blocks that a query attends to.
        local: number of latest blocks, including the block of the query's own token.
    """

    layer: int
    queries: mx.array
    block: int
    top: int
    local: int

    @property
    def most_tokens(self) -> int:
        """Number of tokens up to which all blocks of a sequence are chosen."""
        return self.block * self.top

    def of(self, tokens: slice) -> BlockChoice:
        """Return the choice for a slice of the tokens."""
        return self._replace(queries=self.queries[tokens])

    def score(self, keys: mx.array) -> mx.array:
        """Score the indexer's keys `(length, dim)`.

        Keys `(tokens, length, dim)` give each query keys of its own.

        Returns:
            `(tokens, kv_heads, length)` in float32.
        """
        return self.queries.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2)

    def keep(self, scores: mx.array, own: mx.array) -> mx.array:
        """Mark the tokens that are in chosen blocks and that the query sees.

        Args:
            scores: `(tokens, kv_heads, length)`; -inf for tokens that a query does not see.
            own: `(tokens,)`, the index of each query's own token.

        Returns:
            Booleans of the shape of `scores`, True for the tokens to attend to.
        """
        length, seen = scores.shape[-1], scores > -mx.inf
        count = -(-length // self.block)
        if count <= self.top:
            return seen
        missing = count * self.block - length
        padded = mx.pad(scores, [(0, 0), (0, 0), (0, missing)], constant_values=-mx.inf)
        best = padded.reshape(*scores.shape[:2], count, self.block).max(axis=-1)
        blocks, latest = mx.arange(count), (own // self.block)[:, None, None]
        best = mx.where((blocks <= latest) & (blocks > latest - self.local), mx.inf, best)
        chosen = mx.argpartition(-best, kth=self.top - 1, axis=-1)[..., : self.top]
        kept = mx.put_along_axis(mx.zeros(best.shape, mx.bool_), chosen, mx.array(True), axis=-1)
        return mx.repeat(kept, self.block, axis=-1)[..., :length] & seen
