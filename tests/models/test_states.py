"""Grouping of rows by length: whatever the lengths, every token comes back to its place."""

from __future__ import annotations

import mlx.core as mx
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.models.states import RowGroups, StateShape

lengths = st.lists(st.integers(1, 5), min_size=1, max_size=8)


@given(lengths)
def test_tokens_and_rows_come_back_in_order(rows: list[int]) -> None:
    groups = RowGroups(rows)
    tokens = mx.arange(sum(rows) * 2).reshape(-1, 1, 2)
    states = mx.arange(len(rows) * 3).reshape(-1, 3)
    assert mx.array_equal(
        groups.join_tokens([g.take_tokens(tokens) for g in groups.groups]), tokens
    )
    assert mx.array_equal(groups.join_rows([g.take_rows(states) for g in groups.groups]), states)


@given(lengths)
def test_a_group_holds_whole_rows_of_one_length(rows: list[int]) -> None:
    groups = RowGroups(rows)
    starts = [sum(rows[:i]) for i in range(len(rows))]
    tokens = mx.arange(sum(rows))
    for group in groups.groups:
        expected = [[starts[row] + i for i in range(group.length)] for row in group.rows]
        assert {rows[row] for row in group.rows} == {group.length}
        assert group.take_tokens(tokens[:, None]).tolist() == expected
        assert group.take_firsts(tokens).tolist() == [places[0] for places in expected]
    assert len({group.length for group in groups.groups}) == len(groups.groups)


def test_rows_of_one_length_are_one_group_without_a_copy() -> None:
    groups = RowGroups([1, 1, 1])
    states = mx.zeros((3, 4))
    (group,) = groups.groups
    assert group.take_rows(states) is states
    assert groups.join_rows([states]) is states


def test_a_state_knows_its_bytes() -> None:
    assert StateShape(0, (4, 8, 8), mx.float32).nbytes == 1024
    assert StateShape(0, (), mx.bfloat16).nbytes == 2
