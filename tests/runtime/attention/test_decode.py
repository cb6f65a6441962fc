"""Attention of decode epochs, against softmax over all keys at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.attention import decode_private
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.spans import shared_spans
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
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
    slots, keys, values, _ = epoch.tail()
    where = {slot: (i, step) for i, row in enumerate(rows) for step, slot in enumerate(row.slots)}
    assert sorted(slots) == sorted(slot for slot, (_, step) in where.items() if step < taken)
    for layer in range(len(LAYERS)):
        for n, slot in enumerate(slots):
            row, step = where[slot]
            right = kv(layer, step, 2)
            np.testing.assert_array_equal(np.array(keys[layer][n]), np.array(right[0][row]))
            np.testing.assert_array_equal(np.array(values[layer][n]), np.array(right[1][row]))


# -- buffers --------------------------------------------------------------------------------------


def scattered(first: int, length: int, slots: int) -> tuple[int, ...]:
    return tuple(1 + (first + i) * 13 % slots for i in range(length))


@st.composite
def unlike_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of any lengths that share little or nothing."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 5, 30, 60, 90, 200, 650]), min_size=1))
    lengths += draw(st.lists(st.integers(0, 700), max_size=9))
    prefixes = [scattered(37 * i, n, steps.SLOTS) for i, n in enumerate(lengths)]
    return [steps.row(f"r{i}", p, 1, (9,)) for i, p in enumerate(prefixes)]


def held(rows: list[Row], pool: Any = POOL) -> tuple[int, int]:
    """Keys that a layer's buffers hold of the prefixes, and keys that are attended."""
    before = pool.keys[0].tokens_read
    Epoch(pool, rows, WIDTH)
    spans, private = shared_spans(rows)
    own = sum(len(row.prefix) - start for row, start in zip(rows, private, strict=True))
    return pool.keys[0].tokens_read - before, own + sum(len(span.slots) for span in spans)


@settings(max_examples=100, deadline=None)
@given(st.one_of(unlike_rows(), steps.trees(slots_ahead=0)))
def test_buffers_hold_little_more_than_is_attended(found: list[Row]) -> None:
    holds, attended = held(arrange(found))
    assert holds <= 1.3 * attended + 64 * len(found)


def test_one_long_row_among_short_ones_holds_little_more_than_is_attended() -> None:
    pool = KVPool([LayerShape(1, 1, 1)], 8192, mx.float32)
    rows = [steps.row(f"r{i}", scattered(40 * i, 40, 8192), 1, (9,)) for i in range(15)]
    rows.append(steps.row("long", scattered(700, 6000, 8192), 1, (9,)))
    holds, attended = held(arrange(rows), pool)
    assert attended == 6600
    assert holds <= 1.3 * attended


@settings(max_examples=40, deadline=None)
@given(unlike_rows(), steps.cases())
def test_rows_of_unlike_lengths_see_what_they_see_alone(found: list[Row], case: Case) -> None:
    rows = arrange(found)
    epoch = Epoch(POOL, rows, WIDTH)
    for step in range(2):
        epoch.begin_step()
        epoch.store(0, *kv(0, step, len(rows)))
    q = steps.random_array(3, len(rows), HEADS, 8)
    out = np.array(epoch.attend(0, q, case.options))
    past = [kv(0, s, len(rows)) for s in range(2)]
    for i, row in enumerate(rows):
        own = tuple(np.stack([np.array(pair[x][i]) for pair in past]) for x in (0, 1))
        right = steps.expected(POOL, row, case, 0, q[i : i + 1], (own[0], own[1]))
        np.testing.assert_allclose(out[i], right[0], **steps.CLOSE)


def test_one_index_serves_all_layers_and_both_keys_and_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    class Counted(SlotIndex):
        def __init__(self, slots: Sequence[int]) -> None:
            made.append(len(slots))
            super().__init__(slots)

    monkeypatch.setattr(decode_private, "SlotIndex", Counted)
    pool = KVPool([LayerShape(1, 2, 2)] * 8, 200, mx.float32)
    Epoch(pool, [steps.row("a", scattered(0, 150, 200), 1, (9,))], WIDTH)
    assert made == [150]


# -- one epoch after another ----------------------------------------------------------------------


class Stream:
    """Rows that decode epoch after epoch over a pool of layers with and without a window."""

    def __init__(self, lengths: list[int], window: int, share: int) -> None:
        self.window = window
        shapes = [LayerShape(2, 8, 8), LayerShape(2, 8, 8, window)]
        self.slots = 4000
        self.pool = KVPool(shapes, self.slots, mx.float32)
        fill = [steps.random_array(i, self.slots, 2, 8) for i in range(2)]
        self.pool.write(list(range(1, self.slots + 1)), fill, fill[::-1])
        self._next = iter(scattered(2000, 1900, self.slots))
        shared = scattered(0, share, self.slots)
        self.prefixes = [(*shared, *(next(self._next) for _ in range(n))) for n in lengths]
        self._seed = 0
        self.read = 0
        self.epoch: Epoch | None = None

    def take(self, count: int) -> None:
        """An epoch of so many steps, checked against softmax over all keys at once."""
        ahead = [tuple(next(self._next) for _ in range(count)) for _ in self.prefixes]
        rows = [
            steps.row(f"r{i}", prefix, 1, slots)
            for i, (prefix, slots) in enumerate(zip(self.prefixes, ahead, strict=True))
        ]
        before = self.pool.keys[0].tokens_read
        if self.epoch is None or not self.epoch.go_on(rows, count):
            self.epoch = Epoch(self.pool, rows, count)
        self.read += self.pool.keys[0].tokens_read - before
        past: list[list[Any]] = [[], []]
        for _ in range(count):
            self.epoch.begin_step()
            for layer in range(2):
                self._seed += 1
                new = [steps.random_array(self._seed + n, len(rows), 2, 8) for n in (0, 10**6)]
                past[layer].append(new)
                self.epoch.store(layer, new[0], new[1])
        for layer, options in enumerate((None, self.window)):
            case = Case(options, None, None)
            q = steps.random_array(self._seed, len(rows), HEADS, 8)
            out = np.array(self.epoch.attend(layer, q, case.options))
            for i, row in enumerate(rows):
                k, v = (np.stack([np.array(pair[x][i]) for pair in past[layer]]) for x in (0, 1))
                right = steps.expected(self.pool, row, case, layer, q[i : i + 1], (k, v))
                np.testing.assert_allclose(out[i], right[0], **steps.CLOSE)
        slots, keys, values, _ = self.epoch.tail()
        mx.eval(keys, values)
        self.pool.write(slots, keys, values)
        self.prefixes = [(*p, *s) for p, s in zip(self.prefixes, ahead, strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=4),
    st.integers(1, 50),
    st.sampled_from([0, 40]),
    st.lists(st.integers(1, 12), min_size=2, max_size=6),
)
def test_epochs_of_the_same_rows_go_on_in_the_same_buffers(
    lengths: list[int], window: int, share: int, epochs: list[int]
) -> None:
    stream = Stream(lengths, window, share)
    stream.take(epochs[0])
    first, read = stream.epoch, stream.read
    for count in epochs[1:]:
        stream.take(count)
    assert stream.epoch is first
    assert stream.read == read


def test_a_windows_buffer_stays_near_the_window_however_long_a_row_goes_on() -> None:
    stream = Stream([5], 16, 0)
    for _ in range(12):
        stream.take(50)
    assert stream.epoch is not None
    columns = sorted(x.shape[2] for x in stream.epoch.arrays())
    assert columns[1] <= 16 + 256 + 2 * 64
    assert columns[2] >= 600


def test_other_rows_do_not_go_on() -> None:
    a, b = steps.row("a", (3, 4), 1, (5, 6)), steps.row("b", (7,), 1, (8, 9))
    after = steps.row("a", (3, 4, 5), 1, (6,))

    def goes_on(*rows: Row) -> bool:
        epoch = Epoch(POOL, [a, b] if len(rows) > 1 else [a], WIDTH)
        epoch.begin_step()
        return epoch.go_on(rows, WIDTH)

    assert goes_on(after)
    assert goes_on(after, steps.row("b", (7, 8), 1, (9,)))
    assert not goes_on(steps.row("c", (3, 4, 5), 1, (6,)))
    assert not goes_on(steps.row("a", (3, 4, 6), 1, (6,)))
    assert not goes_on(steps.row("a", (3, 4), 1, (6,)))
    assert not goes_on(steps.row("a", (3, 4, 5), 1, (6,), gap=2))
    assert not goes_on(after, b)
