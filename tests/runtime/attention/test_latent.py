"""Prefill chunks over latents: absorbed or expanded, the result is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.latents import Expansion, HeadMatrices, LatentQueries
from sgl_mlx.runtime.attention import latent
from sgl_mlx.runtime.attention.latent import LatentChunks, LatentInputs
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.runner import arrange
from sgl_mlx.runtime.scheduler.plan import Row
from tests.runtime.steps import SLOTS, row, rows

HEADS, RANK, NOPE, ROPE, VALUE = 3, 8, 5, 4, 6
OPTIONS = AttentionOptions(0.3)


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def matrices(width: int) -> HeadMatrices:
    weight = random(HEADS, width, RANK) / RANK**0.5
    return HeadMatrices(
        lambda x, transpose: x @ (weight.swapaxes(-1, -2) if transpose else weight), rank_last=True
    )


EXPANSION = Expansion(
    HEADS, RANK, NOPE, ROPE, VALUE, matrices(NOPE), matrices(VALUE), absorbs=False
)
DEEPSEEK = replace(EXPANSION, heads=16, rank=512, nope=128, rope=64, value_dim=128)


@pytest.fixture(scope="module")
def pool() -> KVPool:
    shape = LayerShape(1, RANK + ROPE, RANK, values_in_keys=True)
    pool = KVPool([shape], SLOTS, mx.float32)
    entries = random(SLOTS, 1, RANK + ROPE)
    pool.write(range(1, SLOTS + 1), [entries], [entries[..., :RANK]])
    return pool


def attend(pool: KVPool, chunks: list[Row]) -> mx.array:
    tokens = sum(len(r.tokens) for r in chunks)
    queries, entries = random(tokens, HEADS, NOPE + ROPE), random(tokens, 1, RANK + ROPE)
    made = LatentChunks(pool, chunks, AttentionPaths(pool).chunks)
    return made.attend(LatentInputs(0, LatentQueries(queries, EXPANSION), entries, OPTIONS))


@settings(deadline=None, max_examples=60)
@given(found=rows(most_tokens=70), data=st.data(), most=st.sampled_from([1, 7, 50, 10_000]))
def test_any_choice_gives_the_same_result(
    pool: KVPool, found: list[Row], data: st.DataObject, most: int
) -> None:
    chunks = sorted(found, key=lambda row: row.prefix)  # single tokens among them, too
    with pytest.MonkeyPatch.context() as patch:
        results = []
        each = HEADS * (NOPE + ROPE + VALUE)
        patch.setattr(latent, "_MOST_EXPANDED", most * each)
        for choose in (lambda *_: False, lambda *_: True, lambda *_: data.draw(st.booleans())):
            patch.setattr(latent._Group, "expands", choose)
            results.append(attend(pool, chunks))
    for result in results[1:]:
        assert mx.allclose(results[0], result, rtol=0, atol=2e-5)


def expands(*chunks: Row) -> list[bool]:
    return [group.expands(DEEPSEEK) for group in latent._groups(arrange(chunks))]


def chunk(name: str, first_slot: int, prefix: int, tokens: int) -> Row:
    slots = tuple(range(first_slot, first_slot + prefix))
    return row(name, slots, tokens, tuple(range(9000, 9000 + tokens)))


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([chunk("a", 1, 0, 2)], [True]),
        ([chunk("a", 1, 4000, 165)], [False]),
        ([chunk("a", 1, 4000, 175)], [True]),
        ([chunk("a", 1, 4000, 20), chunk("b", 1, 4000, 20)], [False]),
        ([chunk(str(i), 1, 4000, 20) for i in range(9)], [True]),
        ([chunk("a", 1, 2000, 20), chunk("b", 3000, 2000, 400)], [False, True]),
    ],
    ids=["no prefix", "few tokens", "many tokens", "two share", "nine share", "each for itself"],
)
def test_a_prefix_is_expanded_where_that_computes_less(
    chunks: list[Row], expected: list[bool]
) -> None:
    assert expands(*chunks) == expected


def products(chunks: list[Row], expand: bool) -> float:
    """Products a head of a chunk's attention, counted for one row after another."""
    total = 0.0
    for r in chunks:
        tokens, pairs = len(r.tokens), len(r.tokens) * (len(r.prefix) + len(r.tokens) / 2)
        keys = tokens + (len(r.prefix) if expand else 0)
        each = 128 + 64 + 128 if expand else 2 * 512 + 64
        total += pairs * each + keys * 512 * (128 + 128)
    return total


@given(prefix=st.integers(0, 8000), tokens=st.integers(2, 2000))
def test_the_choice_is_that_with_fewer_products(prefix: int, tokens: int) -> None:
    alone = chunk("a", 1, prefix, tokens)
    assert expands(alone) == [products([alone], True) < products([alone], False)]


def test_entries_are_gathered_once_for_rows_that_share_them(pool: KVPool) -> None:
    shared = tuple(range(1, 101))
    chunks = [row(f"r{i}", shared, 50, tuple(range(200 + 50 * i, 250 + 50 * i))) for i in range(4)]
    before = pool.keys[0].tokens_read
    mx.eval(attend(pool, chunks))
    assert pool.keys[0].tokens_read - before == len(shared)


def test_layers_of_other_widths_are_decided_anew(pool: KVPool) -> None:
    made: Any = LatentChunks(pool, [chunk("a", 1, 200, 30)], AttentionPaths(pool).chunks)
    nothing = mx.zeros((0,))
    ways = [
        type(
            made._runs_for(LatentInputs(0, LatentQueries(nothing, like), nothing, OPTIONS))[0]
        ).__name__
        for like in (EXPANSION, DEEPSEEK)
    ]
    assert ways == ["_Expanded", "_Absorbed"]
