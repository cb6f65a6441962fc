"""Sparse attention over latents: what an indexer chooses is attended to, and nothing else."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.metal_kernels.reference import softmax_attention
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.latents import IndexQueries, LatentQueries
from sgl_mlx.runtime.attention import chosen
from sgl_mlx.runtime.attention.chosen import ChosenEpoch
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.attention.step import ExtendStep
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.runner import arrange
from sgl_mlx.runtime.scheduler.plan import Row
from tests.runtime.attention.test_latent import (
    EXPANSION,
    HEADS,
    NOPE,
    OPTIONS,
    RANK,
    ROPE,
    VALUE,
    random,
)
from tests.runtime.steps import SLOTS, rows

WIDTH, INDEX_DIM = RANK + ROPE, 3
TOPS = st.sampled_from([1, 5, 40, 1000])


def pool_with(top: int) -> KVPool:
    """Layer 0 keeps entries, layer 1 its indexer's keys."""
    layers = [
        LayerShape(1, WIDTH, RANK, values_in_keys=True, top_keys=top),
        LayerShape(1, INDEX_DIM, 0, values_in_keys=True),
    ]
    pool = KVPool(layers, SLOTS, mx.float32)
    keys = [random(SLOTS, 1, layer.key_dim) for layer in layers]
    pool.write(range(1, SLOTS + 1), keys, [x[..., :0] for x in keys])
    return pool


class Drawn:
    """One layer's new queries and keys of a step."""

    def __init__(self, tokens: int, top: int) -> None:
        self.queries = random(tokens, HEADS, NOPE + ROPE)
        self.entries = random(tokens, 1, WIDTH)
        self.index_keys = random(tokens, 1, INDEX_DIM)
        # opposite queries, so that one head's score counts and no two tokens score the same
        queries = random(tokens, 1, INDEX_DIM) + 0.1
        weights = 0.1 + mx.abs(random(tokens, 2))
        self.index = IndexQueries(1, mx.concatenate([queries, -queries], 1), weights, top)

    @property
    def latent(self) -> LatentQueries:
        return LatentQueries(self.queries, EXPANSION, self.index)

    def store(self, attention: ExtendStep | ChosenEpoch) -> None:
        attention.store(0, self.entries, self.entries[..., :RANK])
        attention.store(1, self.index_keys, self.index_keys[..., :0])


def expected(pool: KVPool, row: Row, drawn: Drawn, first: int, last: int) -> list[mx.array]:
    """Outputs of a row's new tokens, each over the tokens with the best scores, expanded."""
    old = [pool.gather(i, SlotIndex(row.prefix))[0] for i in range(2)] if row.prefix else None
    outs = []
    for i in range(first, last):
        new = drawn.entries[first : i + 1], drawn.index_keys[first : i + 1]
        whole = [mx.concatenate([a, b]) for a, b in zip(old, new, strict=True)] if old else new
        entries, keys = whole[0], whole[1][:, 0]
        products = mx.maximum(drawn.index.queries[i] @ keys.T, 0)
        scores = (products * drawn.index.weights[i][:, None]).sum(0)
        best = mx.argsort(-scores)[: drawn.index.top]
        mine = drawn.queries[i : i + 1]
        outs.append(softmax_attention(mine, *EXPANSION.expand(entries[best]), OPTIONS)[0])
    return outs


@settings(deadline=None, max_examples=50)
@given(found=rows(most_tokens=30), top=TOPS, tile=st.sampled_from([1, 2000, 2**24]))
def test_a_step_attends_to_the_tokens_with_the_best_scores(
    found: list[Row], top: int, tile: int
) -> None:
    mixed, pool = arrange(found), pool_with(top)
    drawn = Drawn(sum(len(row.tokens) for row in mixed), top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen, "MOST_SCORES", tile)
        step = ExtendStep(AttentionPaths(pool), mixed)
        drawn.store(step)
        out = step.attend_latents(0, drawn.latent, OPTIONS)
    assert out.shape == (len(drawn.queries), HEADS, VALUE)
    right, first = [], 0
    for row in mixed:
        right += expected(pool, row, drawn, first, first + len(row.tokens))
        first += len(row.tokens)
    assert mx.allclose(out, mx.stack(right), rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(found=rows(most_tokens=1, slots_ahead=6), top=TOPS, steps=st.integers(1, 4))
def test_an_epoch_chooses_among_its_own_new_tokens_too(
    found: list[Row], top: int, steps: int
) -> None:
    single, pool = arrange(found), pool_with(top)
    epoch = ChosenEpoch(pool, single, 6)
    steps_drawn = []
    for step in range(steps):
        epoch.begin_step()
        drawn = Drawn(len(single), top)
        drawn.entries, drawn.index_keys = drawn.entries + step, drawn.index_keys - step
        drawn.store(epoch)
        out = epoch.attend_latents(0, drawn.latent, OPTIONS)
        steps_drawn.append(drawn)
    for i, row in enumerate(single):
        alone = Drawn(steps, top)
        for name in ("queries", "entries", "index_keys"):
            setattr(alone, name, mx.stack([getattr(x, name)[i] for x in steps_drawn]))
        alone.index = IndexQueries(
            1,
            mx.stack([x.index.queries[i] for x in steps_drawn]),
            mx.stack([x.index.weights[i] for x in steps_drawn]),
            top,
        )
        right = expected(pool, row, alone, 0, steps)[-1]
        assert mx.allclose(out[i], right, rtol=0, atol=2e-5)


def test_short_rows_take_the_ordinary_epoch_until_they_grow_beyond() -> None:
    paths = AttentionPaths(pool_with(40))
    assert paths.copies

    def opened(prefix: int, width: int) -> bool:
        found = Row(
            "a",
            (0,),
            tuple(range(1, prefix + 1)),
            tuple(range(300, 300 + width)),
            prefix,
            True,
            params=None,
        )  # type: ignore[arg-type]
        return isinstance(paths.epoch([found], width), ChosenEpoch)

    assert [opened(30, 10), opened(30, 11), opened(200, 1)] == [False, True, True]
