"""The pool of recurrent states, and the states of an epoch outside it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.states import StateShape
from sgl_mlx.runtime.pool.state_memory import state_budget
from sgl_mlx.runtime.pool.states import EpochStates, StatePool, StepStates
from sgl_mlx.runtime.scheduler.plan import PoolLost, Row

SHAPES = [StateShape(0, (3, 2), mx.bfloat16), StateShape(0, (2,), mx.float32)]
EACH = 3 * 2 * 2 + 2 * 4


def row(name: str, read: int, write: int, count: int = 1) -> Row:
    params = SamplingParams()
    return Row(name, (1,) * count, (), (1,) * count, 0, True, params, state=(read, write))


def told(pool: StatePool, slots: Sequence[int]) -> list[int]:
    """Read the number that the states in each of these slots were filled with."""
    arrays = [np.array(array.astype(mx.float32)) for array in pool.read(slots)]
    firsts = [array.reshape(len(slots), -1) for array in arrays]
    for i, _ in enumerate(slots):
        assert len({float(x) for array in firsts for x in array[i]}) == 1
    return [int(x) for x in firsts[0][:, 0]]


def filled(values: Sequence[int]) -> list[mx.array]:
    return [
        mx.stack([mx.full(x.shape, value, x.dtype) for value in values])  # bfloat16 is exact to 256
        for x in SHAPES
    ]


def test_slot_0_is_the_state_of_a_fresh_sequence_and_growth_keeps_all() -> None:
    pool = StatePool(SHAPES, 3)
    assert pool.nbytes == 4 * EACH == 4 * StatePool.bytes_per_slot(SHAPES)
    pool.write([2, 1], filled([20, 10]))
    pool.grow(5)
    pool.grow(2)
    assert pool.slots == 5
    assert pool.nbytes == 6 * EACH
    pool.write([5], filled([50]))
    assert told(pool, [0, 1, 2, 3, 4, 5]) == [0, 10, 20, 0, 0, 50]
    assert [array.dtype for array in pool.arrays] == [mx.bfloat16, mx.float32]


def test_a_step_reads_one_slot_and_writes_another() -> None:
    pool = StatePool(SHAPES, 4)
    pool.write([1, 2], filled([1, 2]))
    step = StepStates(pool, [row("a", 1, 3, 5), row("b", 1, 1), row("c", 0, 4, 2)])
    assert step.rows.lengths == (5, 1, 2)
    step.rows.new = [array + 10 for array in step.rows.arrays]
    step.write()
    assert told(pool, [1, 2, 3, 4]) == [11, 2, 11, 10]


def test_a_write_that_fails_says_that_the_pool_is_lost() -> None:
    pool = StatePool(SHAPES, 2)
    with pytest.raises(PoolLost, match="could not be written"):
        pool.write([1], [mx.zeros((1, 9)), mx.zeros((1, 9))])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), count=st.integers(1, 4))
def test_each_row_leaves_the_state_of_the_last_step_that_named_it(
    data: st.DataObject, count: int
) -> None:
    """Rows end at any step, and steps are submitted ahead or not."""
    pool = StatePool(SHAPES, 2 * count)
    pool.write(list(range(1, count + 1)), filled([10 * i for i in range(1, count + 1)]))
    rows = [row(str(i), i + 1, count + i + 1) for i in range(count)]
    lasts = [data.draw(st.integers(1, 5)) for _ in rows]
    epoch = EpochStates(pool, rows)

    def submit() -> None:
        states = epoch.begin_step()
        states.new = [array + 1 for array in states.arrays]
        epoch.end_step(states)

    ahead = False
    for step in itertools.count(1):
        live = [r.id for r, last in zip(rows, lasts, strict=True) if last >= step]
        if not live:
            break
        epoch.put_aside(live)
        if not ahead:
            submit()
        epoch.returned()
        ahead = data.draw(st.booleans())
        if ahead:
            submit()
        mx.eval(epoch.arrays())
    slots, states = epoch.final()
    mx.eval(states)
    pool.write(slots, states)
    assert sorted(slots) == [count + i + 1 for i in range(count)]
    expected = [10 * (i + 1) + last for i, last in enumerate(lasts)]
    assert told(pool, [count + i + 1 for i in range(count)]) == expected
    assert told(pool, list(range(1, count + 1))) == [10 * (i + 1) for i in range(count)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    available=st.integers(0, 400 * EACH),
    running=st.integers(1, 64),
    wanted=st.none() | st.integers(1, 200),
    attends=st.booleans(),
)
def test_states_fit_their_share_of_memory(
    available: int, running: int, wanted: int | None, attends: bool
) -> None:
    budget, share = None, 0.3 if attends else 0.6
    with suppress(MemoryLimitError):
        budget = state_budget(SHAPES, wanted, running, available, attends)
    if budget is None:
        assert wanted is not None or share * available < 5 * EACH
        return
    assert budget.nbytes <= share * available
    assert budget.nbytes == (budget.slots + 3 * budget.running) * EACH
    assert 1 <= budget.running <= min(running, budget.slots)
    assert wanted in (None, budget.slots)
    assert wanted is not None or budget.slots > budget.running
    assert budget.left(available) <= available - budget.nbytes


def test_a_state_that_is_larger_than_memory_is_refused_with_the_numbers() -> None:
    large = [StateShape(0, (2**30,), mx.float32)]
    with pytest.raises(MemoryLimitError, match=r"4\.000 GiB.*2 slots.*20\.00 GiB.*smaller"):
        state_budget(large, None, 64, 8 * 2**30)
    with pytest.raises(MemoryLimitError, match=r"at most 7 slots \(max_total_states\)"):
        state_budget(large, 9, 1, 134 * 2**30)
