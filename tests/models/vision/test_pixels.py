"""Steps on pixels: where proportions are extreme, an error comes before memory is used."""

from __future__ import annotations

import numpy as np
import pytest

from sgl_mlx.errors import ImageError
from sgl_mlx.models.vision.pixels import PixelSettings, pad_to_square, to_input

SETTINGS = PixelSettings(28, 3, (28, 28), None, None, None)


def test_a_picture_far_too_long_is_refused_before_it_is_resized() -> None:
    with pytest.raises(ImageError, match=r"would become 28 x 84,000,000 pixels"):
        to_input(np.zeros((3_000_000, 1, 3), np.uint8), SETTINGS)


def test_a_line_that_would_become_a_huge_square_is_refused() -> None:
    with pytest.raises(ImageError, match="20,000 x 20,000"):
        pad_to_square(np.zeros((1, 20_000, 3), np.uint8), (0, 0, 0))


@pytest.mark.parametrize(("size", "before", "after"), [(26, 1, 1), (25, 2, 1), (1, 14, 13)])
def test_a_crop_beyond_the_picture_is_black_around_it(size: int, before: int, after: int) -> None:
    settings = PixelSettings(None, 3, (28, 28), None, None, None)
    found = to_input(np.full((size, size, 3), 7, np.uint8), settings)[..., 0]
    filled = np.flatnonzero(found.any(axis=1))
    assert found.shape == (28, 28)
    assert (filled[0], 27 - filled[-1]) == (before, after)


def test_a_crop_takes_the_middle() -> None:
    pixels = np.arange(6, dtype=np.uint8)[None, :, None].repeat(6, 0).repeat(3, 2)
    found = to_input(pixels, PixelSettings(None, 3, (3, 3), None, None, None))
    assert found[0, :, 0].tolist() == [1, 2, 3]


def test_an_odd_square_has_the_smaller_margin_first() -> None:
    found = pad_to_square(np.zeros((2, 5, 3), np.uint8), (9, 9, 9))
    assert found[:, 0, 0].tolist() == [9, 0, 0, 9, 9]
