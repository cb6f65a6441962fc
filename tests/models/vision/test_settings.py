"""Processing settings come from the folder's files, else from the family; wrong ones are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models.loader import load
from sgl_mlx.models.vision.pixels import PixelSettings
from sgl_mlx.models.vision.settings import CLIP_MEAN, CLIP_STD
from tests.models.vision.conftest import Write, read_golden


def settings(write: Write, name: str = "llava", **files: Any) -> PixelSettings:
    loaded = load(write(name, files={f"{key}.json": value for key, value in files.items()}))
    assert loaded.vision is not None
    return loaded.vision.settings


def test_without_a_file_they_are_the_familys_at_the_towers_size(write: Write) -> None:
    found = settings(write)
    assert (found.size, found.crop, found.resample) == (28, (28, 28), 3)
    assert (found.mean, found.std, found.rescale) == (CLIP_MEAN, CLIP_STD, 1 / 255)


def test_the_nested_file_goes_first(write: Write) -> None:
    processor = read_golden("llava").processor
    nested = {"image_processor": {**processor, "resample": 2}}
    plain = {**processor, "resample": 0}
    assert settings(write, processor_config=nested, preprocessor_config=plain).resample == 2


def test_a_processor_file_without_image_settings_is_passed_over(write: Write) -> None:
    plain = {**read_golden("llava").processor, "resample": 0}
    found = settings(write, processor_config={"patch_size": 14}, preprocessor_config=plain)
    assert found.resample == 0


@pytest.mark.parametrize(
    ("size", "parsed"),
    [(28, 28), ({"shortest_edge": 28}, 28), ({"height": 28, "width": 28}, (28, 28))],
)
def test_sizes_may_be_numbers_or_names(write: Write, size: Any, parsed: Any) -> None:
    given = {"size": size, "crop_size": 28}
    found = settings(write, preprocessor_config=given)
    assert (found.size, found.crop) == (parsed, (28, 28))


def test_steps_can_be_switched_off(write: Write) -> None:
    given = {**read_golden("llava").processor, "do_rescale": False, "do_normalize": False}
    found = settings(write, preprocessor_config=given)
    assert (found.rescale, found.mean, found.std) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image_mean": [0.5, 0.5]}, "three numbers"),
        ({"image_mean": ["a", "b", "c"]}, "must be a number"),
        ({"image_std": [0.5, 0, 0.5]}, "none may be 0"),
        ({"image_std": 0}, "none may be 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255': it must be a number"),
        ({"resample": 9}, "resample is 9: .* 0 to 5"),
        ({"size": {"width": 28}}, "size is"),
        ({"size": {"shortest_edge": -1}}, "whole numbers from 1"),
        ({"size": [28]}, "size is"),
        ({"crop_size": {"height": 28, "width": True}}, "whole numbers from 1"),
        ({"crop_size": 14}, "pictures become 14 x 14, the vision tower takes 28 x 28"),
        ({"do_resize": False, "do_center_crop": False}, "pictures become 0 x 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(write: Write, change: dict[str, Any], fault: str) -> None:
    given = {**read_golden("llava").processor, **change}
    with pytest.raises(CorruptModelError, match=rf"preprocessor_config\.json: .*{fault}"):
        settings(write, preprocessor_config=given)


def test_a_size_that_bounds_the_longer_edge_is_refused(write: Write) -> None:
    given = {"size": {"shortest_edge": 28, "longest_edge": 40}}
    with pytest.raises(UnsupportedModelError, match="longest_edge"):
        settings(write, preprocessor_config=given)


@pytest.mark.parametrize(
    ("pinpoints", "fault"),
    [
        ([[28, 57]], "must be multiples of 28"),
        ([], "must be multiples of 28"),
        ([[28, 56]], r"differ from those in config\.json"),
        ([[28]], "image_grid_pinpoints is"),
    ],
)
def test_resolutions_that_do_not_fit_the_tower_are_refused(
    write: Write, pinpoints: Any, fault: str
) -> None:
    given = {**read_golden("llava_next").processor, "image_grid_pinpoints": pinpoints}
    with pytest.raises(CorruptModelError, match=fault):
        settings(write, "llava_next", preprocessor_config=given)


def test_a_broken_file_is_refused(write: Write) -> None:
    folder = write("llava")
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(CorruptModelError, match=r"preprocessor_config\.json is not JSON"):
        load(folder)


def test_the_colour_around_a_padded_picture_is_the_mean() -> None:
    found = PixelSettings(28, 3, None, None, CLIP_MEAN, CLIP_STD)
    assert found.mean_colour == (122, 116, 104)
    assert np.array_equal(PixelSettings(28, 3, None, None, None, None).mean_colour, (0, 0, 0))
