"""Sizes and settings of pictures for Qwen's models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import CorruptModelError, ImageError, UnsupportedModelError
from sgl_mlx.models.vision.qwen.config import read_tower
from sgl_mlx.models.vision.qwen.pixels import GridSettings, read_grid_settings, resized, to_grid
from tests.models.vision.conftest import GOLDENS, read_golden

TOWER = read_tower(read_golden("qwen3_vl").config, "config.json")
edges = st.integers(1, 4000)


def settings(tmp_path: Path, **values: Any) -> GridSettings:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    return read_grid_settings(tmp_path, TOWER, "qwen3_vl")


def test_sizes_are_those_of_transformers(tmp_path: Path) -> None:
    plain = replace(read_grid_settings(tmp_path, TOWER, "qwen3_vl"), cell=32)
    with np.load(GOLDENS / "qwen_counts.npz") as file:
        rows = zip(file["sizes"], file["bounds"], file["resized"], strict=True)
        for size, (least, most), expected in rows:
            found = resized(tuple(size.tolist()), replace(plain, least=int(least), most=int(most)))
            assert found == tuple(expected.tolist())


@given(edges, edges)
def test_sizes_are_whole_tokens_within_bounds(height: int, width: int) -> None:
    bounds = read_grid_settings(Path("nowhere"), TOWER, "qwen3_vl")
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageError, match="200 times"):
            resized((height, width), bounds)
        return
    rows, columns = resized((height, width), bounds)
    assert rows % bounds.cell == columns % bounds.cell == 0
    assert bounds.least <= rows * columns <= bounds.most


def test_without_a_file_the_published_settings_hold(tmp_path: Path) -> None:
    found = read_grid_settings(tmp_path, TOWER, "qwen3_vl")
    assert (found.least, found.most, found.cell) == (65_536, 16_777_216, 8)
    assert to_grid(np.zeros((20, 20, 3), np.uint8), found).min() == -1


def test_older_names_of_the_bounds_are_read(tmp_path: Path) -> None:
    found = settings(tmp_path, min_pixels=3136, max_pixels=50_000)
    assert (found.least, found.most) == (3136, 50_000)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"patch_size": 14}, "the vision tower takes 4"),
        ({"merge_size": 3}, "the vision tower takes 2"),
        ({"size": {"shortest_edge": 0}}, "size is"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "at least 9 and at most 8"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"max_pixels": "many"}, "max_pixels"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(CorruptModelError, match=told):
        settings(tmp_path, **values)


def test_pictures_that_are_not_to_be_resized_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="do_resize is false"):
        settings(tmp_path, do_resize=False)
