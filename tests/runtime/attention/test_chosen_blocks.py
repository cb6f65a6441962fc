"""Sparse attention to blocks of tokens: what is not in a chosen block has no part."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.runtime.attention import chosen_blocks
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.attention.step import ExtendStep
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.runner import arrange
from sgl_mlx.runtime.scheduler.plan import Row
from tests.models.test_block_choice import expected as expected_blocks
from tests.runtime.attention.test_latent import random
from tests.runtime.steps import SLOTS, rows

KV_HEADS, HEADS, DIM, INDEX_DIM = 2, 6, 8, 3
OPTIONS = AttentionOptions(0.4)


def pool_with(top_keys: int) -> KVPool:
    """Layer 0 keeps keys and values, layer 1 its indexer's keys."""
    layers = [
        LayerShape(KV_HEADS, DIM, DIM, top_keys=top_keys),
        LayerShape(1, INDEX_DIM, 0, values_in_keys=True),
    ]
    pool = KVPool(layers, SLOTS, mx.float32)
    keys = [random(SLOTS, x.heads, x.key_dim) for x in layers]
    pool.write(range(1, SLOTS + 1), keys, [2 * keys[0] + 1, keys[1][..., :0]])
    return pool


def attend(query: mx.array, keys: mx.array, values: mx.array, kept: list[bool]) -> np.ndarray:
    """One query head's attention to the keys kept, `(length, dim)`, in numpy."""
    mine = np.flatnonzero(kept)
    k, v = np.array(keys)[mine], np.array(values)[mine]
    scores = k @ np.array(query) * OPTIONS.scale
    weights = np.exp(scores - scores.max())
    out: np.ndarray = weights @ v / weights.sum()
    return out


class Step:
    """A step's new queries and keys of both layers."""

    def __init__(self, tokens: int, block: int, top: int, local: int) -> None:
        self.queries, self.keys = random(tokens, HEADS, DIM), random(tokens, KV_HEADS, DIM)
        self.values, self.index_keys = self.keys - 1, random(tokens, 1, INDEX_DIM)
        chooser = random(tokens, KV_HEADS, INDEX_DIM)
        self.choice = BlockChoice(1, chooser, block, top, local)

    def run(self, pool: KVPool, mixed: list[Row]) -> mx.array:
        step = ExtendStep(AttentionPaths(pool), mixed)
        step.store(0, self.keys, self.values)
        step.store(1, self.index_keys, self.index_keys[..., :0])
        return step.attend_blocks(0, self.queries, OPTIONS, self.choice)

    def expected(self, pool: KVPool, row: Row, first: int) -> list[list[np.ndarray]]:
        """Outputs `(tokens, heads)` of a row whose first new token is `first`."""
        mine = slice(first, first + len(row.tokens))
        new = self.keys[mine], self.values[mine], self.index_keys[mine]
        if row.prefix:
            index = SlotIndex(row.prefix)
            old = (*pool.gather(0, index), pool.gather(1, index)[0])
            new = tuple(mx.concatenate([a, b]) for a, b in zip(old, new, strict=True))  # type: ignore[assignment]
        keys, values, index_keys = new
        outs = []
        for i in range(len(row.tokens)):
            own = len(row.prefix) + i
            scores = np.array(self.choice.of(mine).of(slice(i, i + 1)).score(index_keys[:, 0]))[0]
            kept = [expected_blocks(scores[h], own, self.choice) for h in range(KV_HEADS)]
            group = HEADS // KV_HEADS
            heads = [(h, h // group) for h in range(HEADS)]
            query = self.queries[first + i]
            outs.append([attend(query[h], keys[:, g], values[:, g], kept[g]) for h, g in heads])
        return outs


@settings(deadline=None, max_examples=40)
@given(
    found=rows(most_tokens=20),
    block=st.sampled_from([1, 3, 8]),
    top=st.sampled_from([1, 2, 5, 400]),
    local=st.integers(0, 1),
    tile=st.sampled_from([1, 2000, 2**24]),
)
def test_a_step_attends_to_chosen_blocks_alone(
    found: list[Row], block: int, top: int, local: int, tile: int
) -> None:
    mixed, pool = arrange(found), pool_with(block * top)
    step = Step(sum(len(row.tokens) for row in mixed), block, top, local)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen_blocks, "MOST_SCORES", tile)
        out = np.array(step.run(pool, mixed))
    right, first = [], 0
    for row in mixed:
        right += step.expected(pool, row, first)
        first += len(row.tokens)
    assert np.allclose(out, np.array(right), rtol=0, atol=2e-5)
