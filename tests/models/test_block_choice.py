"""The choice of blocks of tokens: those with the best scores, and the latest."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.block_choice import BlockChoice
from tests.models.toy import toy_configs, toy_model

HEADS = 2


def expected(scores: np.ndarray, own: int, choice: BlockChoice) -> list[bool]:
    """Tokens that one query's one head keeps, found block by block."""
    count = own // choice.block + 1
    best = {b: max(scores[b * choice.block : own + 1][: choice.block]) for b in range(count)}
    local = [b for b in best if b > count - 1 - choice.local]
    ranked = sorted((b for b in best if b not in local), key=lambda b: -best[b])
    kept = {*local, *ranked[: max(choice.top - len(local), 0)]}
    return [i <= own and i // choice.block in kept for i in range(len(scores))]


@settings(deadline=None, max_examples=80)
@given(data=st.data(), block=st.integers(1, 5), top=st.integers(1, 6), length=st.integers(1, 40))
def test_each_head_keeps_the_blocks_with_the_best_scores_and_the_latest(
    data: st.DataObject, block: int, top: int, length: int
) -> None:
    local = data.draw(st.integers(0, top))
    own = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4))
    choice = BlockChoice(0, mx.zeros((len(own), HEADS, 1)), block, top, local)
    shape = len(own), HEADS, length
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape)
    hidden = np.arange(length) > np.array(own)[:, None, None]
    seen = mx.array(np.where(hidden, -np.inf, scores).astype(np.float32))
    kept = choice.keep(seen, mx.array(own)).tolist()
    for query, position in enumerate(own):
        for head in range(HEADS):
            right = expected(scores[query, head], position, choice)
            assert kept[query][head] == right


def test_as_many_heads_choose_as_there_are_kv_heads() -> None:
    config = toy_configs("minimax_m3_vl")[-1]
    config["text_config"]["index_n_heads"] = 4
    with pytest.raises(UnsupportedModelError, match="4 heads of its indexer choose for 2 KV heads"):
        Adapter(toy_model("minimax_m3_vl", config))
