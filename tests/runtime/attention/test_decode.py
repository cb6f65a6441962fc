"""Attention of decode epochs, against softmax over all keys at once."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.runner import arrange
from sgl_mlx.runtime.scheduler.plan import Row
from tests.runtime import steps
from tests.runtime.steps import HEADS, LAYERS, Case

POOL = steps.random_pool()
WIDTH = 4


def kv(layer: int, step: int, rows: int) -> tuple[mx.array, mx.array]:
    seed = 1000 + 10 * layer + step
    return steps.random_array(seed, rows, 2, 8), steps.random_array(seed + 500, rows, 2, 8)


@settings(max_examples=60, deadline=None)
@given(steps.rows(1, slots_ahead=WIDTH - 1), steps.cases(), st.integers(1, WIDTH))
def test_every_step_sees_the_prefix_and_the_steps_before_it(
    found: list[Row], case: Case, count: int
) -> None:
    rows = arrange(found)
    epoch = Epoch(POOL, rows, WIDTH)
    for step in range(count):
        assert epoch.begin_step().tolist() == [row.position + step for row in rows]
        for layer in range(len(LAYERS)):
            epoch.store(layer, *kv(layer, step, len(rows)))
            q = steps.random_array(step, len(rows), HEADS, 8)
            out = np.array(epoch.attend(layer, q, case.options))
            past = [kv(layer, s, len(rows)) for s in range(step + 1)]
            for i, row in enumerate(rows):
                own = tuple(np.stack([np.array(pair[x][i]) for pair in past]) for x in (0, 1))
                right = steps.expected(POOL, row, case, layer, q[i : i + 1], (own[0], own[1]))
                np.testing.assert_allclose(out[i], right[0], **steps.CLOSE)


@settings(max_examples=40, deadline=None)
@given(steps.trees(slots_ahead=1), steps.cases())
def test_a_row_of_a_prefix_tree_sees_what_it_sees_alone(found: list[Row], case: Case) -> None:
    rows = arrange(found)

    def attended(some: list[Row]) -> Any:
        """Two steps of these rows `(steps, rows, heads, dim)`."""
        index = mx.array([rows.index(row) for row in some])
        epoch, outs = Epoch(POOL, some, WIDTH), []
        for step in range(2):
            epoch.begin_step()
            epoch.store(1, *(x[index] for x in kv(1, step, len(rows))))
            q = steps.random_array(step, len(rows), HEADS, 8)[index]
            outs.append(np.array(epoch.attend(1, q, case.options)))
        return np.stack(outs)

    together = attended(rows)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(together[:, i], attended([row])[:, 0], **steps.CLOSE)


@pytest.mark.parametrize("taken", [1, 3])
def test_the_tail_is_the_kv_of_the_steps_taken_where_rows_have_slots(taken: int) -> None:
    rows = [steps.row("a", (3, 4), 1, (10, 11, 12, 13)), steps.row("b", (3, 4, 5), 1, (20, 21))]
    epoch = Epoch(POOL, rows, WIDTH)
    for step in range(taken):
        epoch.begin_step()
        for layer in range(len(LAYERS)):
            epoch.store(layer, *kv(layer, step, 2))
    slots, keys, values = epoch.tail()
    where = {slot: (i, step) for i, row in enumerate(rows) for step, slot in enumerate(row.slots)}
    assert sorted(slots) == sorted(slot for slot, (_, step) in where.items() if step < taken)
    for layer in range(len(LAYERS)):
        for n, slot in enumerate(slots):
            row, step = where[slot]
            right = kv(layer, step, 2)
            np.testing.assert_array_equal(np.array(keys[layer][n]), np.array(right[0][row]))
            np.testing.assert_array_equal(np.array(values[layer][n]), np.array(right[1][row]))
