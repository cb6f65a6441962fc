"""Windows of attention divide a picture's tokens, whatever its shape."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.models.vision.qwen.config import read_tower
from sgl_mlx.models.vision.qwen.windows import Windows
from tests.models.vision.conftest import read_golden

TOWER = read_tower(read_golden("qwen2_5_vl").config, "config.json")
edges = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(edges, edges, st.integers(1, 4))
def test_windows_hold_every_token_once_and_come_back_by_row(
    rows: int, columns: int, edge: int
) -> None:
    windows = Windows((2 * rows, 2 * columns), replace(TOWER, window=edge))
    count = rows * columns
    patches = mx.arange(4 * count).reshape(1, -1, 1)
    by_window = windows.sorted(patches)
    tokens = [int(x) // 4 for x in by_window[0, ::4, 0].tolist()]
    assert sorted(tokens) == list(range(count))
    first = 0
    for number, size in windows.groups:
        for _ in range(number):
            inside = tokens[first : first + size // 4]
            assert len({(t // columns // edge, t % columns // edge) for t in inside}) == 1
            first += size // 4
    assert first == count
    assert len(windows.groups) <= 4
    back = windows.by_row(by_window.reshape(1, count, 4))
    assert mx.array_equal(back, patches.reshape(1, count, 4))


def test_without_windows_nothing_is_moved() -> None:
    windows = Windows((4, 6), replace(TOWER, window=0))
    patches = mx.zeros((1, 24, 3))
    assert windows.sorted(patches) is patches
    assert windows.groups == windows.whole == [(1, 24)]
