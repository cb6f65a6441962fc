"""The arithmetic of tiling, on sizes where rounding decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.models.vision.anyres import best_resolution, cut, fitted, kept
from sgl_mlx.models.vision.pixels import PixelSettings, Size

SIDE = 336
CANDIDATES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
edges = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("size", "best"),
    [
        ((100, 100), (336, 672)),
        ((600, 600), (672, 672)),
        ((300, 900), (336, 1008)),
        ((900, 300), (1008, 336)),
        ((480, 640), (672, 672)),
        ((336, 672), (336, 672)),
    ],
)
def test_the_resolution_that_keeps_most_and_wastes_least_is_chosen(size: Size, best: Size) -> None:
    assert best_resolution(size, CANDIDATES) == best


@given(edges, edges)
def test_the_fitted_size_touches_the_box_and_never_leaves_it(height: int, width: int) -> None:
    box = best_resolution((height, width), CANDIDATES)
    found = fitted((height, width), box)
    assert found[0] == box[0] or found[1] == box[1]
    assert 1 <= found[0] <= box[0]
    assert 1 <= found[1] <= box[1]


@given(edges, edges)
def test_the_padding_that_is_taken_off_is_the_same_on_both_sides(height: int, width: int) -> None:
    box = best_resolution((height, width), CANDIDATES)
    patches = box[0] * 24 // SIDE, box[1] * 24 // SIDE
    rows, columns = kept((height, width), patches)
    assert rows.start == patches[0] - rows.stop
    assert columns.start == patches[1] - columns.stop
    assert rows.start == 0 or columns.start == 0


@pytest.mark.parametrize(("height", "width"), [(55, 88), (110, 176)])
def test_a_product_just_below_a_whole_number_counts_as_that_number(height: int, width: int) -> None:
    assert int(height * (24 / width)) == 14  # 15 without rounding; 14 leaves 4 rows above
    assert kept((height, width), (24, 24)) == (slice(4, 20), slice(0, 24))


def test_tiles_come_by_rows_after_the_whole_picture() -> None:
    settings = PixelSettings(2, 0, (2, 2), None, None, None, candidates=((4, 6),))
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    tiles, grid = cut(pixels, settings)
    assert grid == (2, 3)
    assert len(tiles) == 7
    assert tiles[0].shape == (2, 2, 3)
    assert np.array_equal(tiles[1], pixels[:2, :2])
    assert np.array_equal(tiles[3], pixels[:2, 4:])
    assert np.array_equal(tiles[4], pixels[2:, :2])
