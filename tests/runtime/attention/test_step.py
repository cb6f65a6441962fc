"""Attention of a step of chunks and single tokens, against softmax over all keys at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.attention.step import ExtendStep
from sgl_mlx.runtime.runner import arrange
from sgl_mlx.runtime.scheduler.plan import Row
from tests.runtime import steps
from tests.runtime.steps import HEADS, LAYERS, Case

POOL = steps.random_pool()
POOLS = {None: POOL, 0.7: steps.random_pool(0.7)}
mixed_rows = st.one_of(steps.rows(1), steps.rows(20), steps.rows(140))


@settings(max_examples=60, deadline=None)
@given(mixed_rows, steps.cases())
def test_every_token_sees_its_prefix_and_its_own_row(found: list[Row], case: Case) -> None:
    rows = arrange(found)
    step = ExtendStep(AttentionPaths(POOLS[case.softcap]), rows)
    total = sum(len(row.tokens) for row in rows)
    for layer in range(len(LAYERS)):
        q = steps.random_array(900, total, HEADS, 8)
        k, v = (steps.random_array(seed + layer, total, 2, 8) for seed in (901, 911))
        step.store(layer, k, v)
        out = np.array(step.attend(layer, q, case.options))
        start = 0
        for row in rows:
            mine = slice(start, start + len(row.tokens))
            right = steps.expected(POOL, row, case, layer, q[mine], (k[mine], v[mine]))
            np.testing.assert_allclose(out[mine], right, **steps.CLOSE)
            start = mine.stop


def test_new_keys_go_where_the_rows_say_in_the_order_of_the_tokens() -> None:
    rows = arrange([steps.row("a", (5, 6), 3, (7, 8, 9)), steps.row("b", (5,), 1, (20,))])
    step = ExtendStep(AttentionPaths(POOL), rows)
    for layer in range(len(LAYERS)):
        step.store(layer, *(steps.random_array(layer, 4, 2, 8) for _ in range(2)))
    assert step.made().slots == [20, 7, 8, 9]
    assert step.positions.tolist() == [1, 2, 3, 4]
    assert [x.shape for x in step.made().keys] == [(4, 2, 8)] * len(LAYERS)
    for layer in range(len(LAYERS)):
        np.testing.assert_array_equal(
            np.array(step.made().keys[layer]), np.array(steps.random_array(layer, 4, 2, 8))
        )
