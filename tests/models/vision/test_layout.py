"""A layout's number of tokens is the number of features it packs; shrinking is torch's bilinear."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.models.vision.anyres import best_resolution
from sgl_mlx.models.vision.config import read_config
from sgl_mlx.models.vision.layout import AnyRes, Ended, Frames, Layout, Plain, bilinear
from sgl_mlx.models.vision.settings import default_values, parse_settings
from tests.models.vision.conftest import GOLDENS

WIDTH = 3
NEWLINE = mx.full((WIDTH,), -1.0)

LAYOUTS: list[tuple[Layout, int, int]] = [
    (Plain(17), 1, 17),
    (Ended(16), 1, 16),
    (Frames(3, 5), 3, 25),
    (Frames(1, 4), 1, 16),
    *[
        (AnyRes(size, grid, side, most), 1 + grid[0] * grid[1], side**2)
        for size in [(40, 40), (33, 100), (100, 33), (1, 500), (500, 1), (640, 481)]
        for grid in [(1, 1), (1, 2), (2, 1), (2, 3), (4, 4), (6, 6)]
        for side in (4, 5)
        for most in (None, 9)
    ],
]


@pytest.mark.parametrize(("layout", "tiles", "patches"), LAYOUTS)
def test_as_many_features_are_packed_as_tokens_were_counted(
    layout: Layout, tiles: int, patches: int
) -> None:
    features = mx.random.normal((tiles, patches, WIDTH))
    assert layout.pack(features, NEWLINE).shape == (layout.tokens, WIDTH)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_tokens_at_real_size_are_as_many_as_transformers_counts(family: str) -> None:
    config = read_config({"model_type": family}, 64, "config.json")
    settings = parse_settings(default_values(config), config, "config.json")
    side, edge = config.tower.patches, config.tower.image_size
    with np.load(GOLDENS / "counts.npz") as file:
        sizes, expected = file["sizes"].tolist(), file[family].tolist()
    found = []
    for size in sizes:
        box = best_resolution(size, settings.candidates)
        grid = box[0] // edge, box[1] // edge
        found.append(AnyRes((size[0], size[1]), grid, side, config.most_tiles).tokens)
    assert found == expected


def test_rows_of_tiles_are_read_across_tiles_and_end_in_a_newline() -> None:
    layout = AnyRes(size=(2, 4), grid=(1, 2), side=2)
    features = mx.arange(12, dtype=mx.float32).reshape(3, 4, 1)
    packed = layout.pack(features, mx.array([-1.0]))[:, 0].tolist()
    assert packed == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]


def test_padding_is_left_out() -> None:
    layout = AnyRes(size=(10, 40), grid=(2, 2), side=4)
    assert layout.tokens == 16 + 2 * (8 + 1)
    features = mx.broadcast_to(mx.arange(5, dtype=mx.float32)[:, None, None], (5, 16, 1))
    packed = layout.pack(features, mx.array([-1.0]))[16:, 0].tolist()
    assert packed == [1] * 4 + [2] * 4 + [-1] + [3] * 4 + [4] * 4 + [-1]


def test_only_what_is_well_over_the_limit_is_shrunk() -> None:
    at_limit = AnyRes(size=(90, 90), grid=(3, 3), side=4, most=9)
    over = AnyRes(size=(120, 120), grid=(4, 4), side=4, most=9)
    assert at_limit.tokens == 16 + 12 * 13
    assert over.tokens == 16 + 12 * 13


def test_without_a_newline_nothing_is_added() -> None:
    assert Ended(4).pack(mx.zeros((1, 4, WIDTH)), None).shape == (4, WIDTH)


def test_bilinear_weighs_the_four_neighbours() -> None:
    image = mx.arange(16, dtype=mx.float32).reshape(4, 4, 1)
    assert bilinear(image, (2, 2))[..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert mx.array_equal(bilinear(image, (4, 4)), image)
    wide = bilinear(mx.array([[[0.0], [4.0]]]), (1, 4))
    assert wide[0, :, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
