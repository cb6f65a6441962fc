"""Processing of pictures for Qwen's towers: resized to whole tokens, within bounds on the pixels.

Results are equal to those of transformers' `Qwen2VLImageProcessorPil` to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgl_mlx.errors import CorruptModelError, ImageError, UnsupportedModelError
from sgl_mlx.models.vision import settings as read
from sgl_mlx.models.vision.pixels import Pixels, PixelSettings, Size, normalised, resize
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig

_MOST_RATIO = 200
COMMON: dict[str, Any] = {
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
"""Settings that hold for pictures and videos, where a settings file says nothing."""
COMMON_QWEN2 = COMMON | {"image_mean": read.CLIP_MEAN, "image_std": read.CLIP_STD}
_DEFAULTS = COMMON | {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}
_QWEN2 = COMMON_QWEN2 | {"size": {"shortest_edge": 3_136, "longest_edge": 12_845_056}}
_SAME = {"patch_size": "patch", "temporal_patch_size": "frames", "merge_size": "merge"}
_SWITCHES = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class GridSettings:
    """Settings by which pictures become the tower's input; from `preprocessor_config.json`.

    Attributes:
        values: how pixels are resampled, rescaled and normalised.
        cell: pixels along the edge of a token.
        least, most: bounds on the number of pixels after resizing.
    """

    values: PixelSettings
    cell: int
    least: int
    most: int


def to_grid(pixels: Pixels, settings: GridSettings) -> NDArray[np.float32]:
    """Resize a picture to whole tokens and normalise it to `(height, width, 3)`.

    Raises:
        ImageError: when the picture is more than 200 times as long as wide, or would exceed
            `pixels.MAX_PIXELS`.
    """
    size = resized((pixels.shape[0], pixels.shape[1]), settings)
    return normalised(resize(pixels, size, settings.values.resample), settings.values)


def resized(size: Size, settings: GridSettings) -> Size:
    """Compute the size of a picture after resizing, both edges multiples of a token's.

    The proportions are kept as far as possible, and the number of pixels is within the settings'
    bounds. The source is Qwen2-VL's `smart_resize`, arXiv 2409.12191.

    Raises:
        ImageError: when the picture is more than 200 times as long as wide.
    """
    return fitted(size, settings.cell, (settings.least, settings.most), 1, 1)


def fitted(size: Size, cell: int, bounds: tuple[int, int], frames: int, rounded: int) -> Size:
    """Compute the size of each of a video's frames, or of a picture, after resizing.

    Args:
        cell: pixels along the edge of a token.
        bounds: the least and the largest number of pixels of all frames together.
        frames: number of frames.
        rounded: number of frames that is compared with the bounds.

    Raises:
        ImageError: as `resized`.
    """
    (height, width), (least, most) = size, bounds
    if max(size) > _MOST_RATIO * min(size):
        raise ImageError(
            f"the picture is {width:,} x {height:,} pixels: its longer edge is more than "
            f"{_MOST_RATIO} times the shorter one; crop it first"
        )
    near = round(height / cell) * cell, round(width / cell) * cell
    pixels = rounded * near[0] * near[1]
    if pixels > most:
        shrink = math.sqrt(frames * height * width / most)
        down = (max(cell, math.floor(edge / shrink / cell) * cell) for edge in size)
        return next(down), next(down)
    if pixels < least:
        grow = math.sqrt(least / (frames * height * width))
        up = (math.ceil(edge * grow / cell) * cell for edge in size)
        return next(up), next(up)
    return near


def read_grid_settings(folder: Path, tower: QwenTowerConfig, family: str) -> GridSettings:
    """Read a model folder's settings; without a settings file, return the family's published ones.

    Raises:
        CorruptModelError: for a value of the wrong kind, or another patch than the tower's.
        UnsupportedModelError: for a picture that is not to be resized, rescaled or normalised.
    """
    path, given = read.find_settings(folder) or (folder / "preprocessor_config.json", {})
    assumed = _QWEN2 if family.startswith("qwen2") else _DEFAULTS
    return parse_grid_settings(given, assumed, tower, str(path))


def parse_grid_settings(
    given: Mapping[str, Any], assumed: Mapping[str, Any], tower: QwenTowerConfig, source: str
) -> GridSettings:
    """Parse a settings file's entries, completed by assumed ones; errors name `source`.

    Raises as `read_grid_settings` does.
    """
    _check(given, tower, source)
    values = {**assumed, **{key: value for key, value in given.items() if value is not None}}
    bounds = {**assumed["size"], **_bounds(values, source)}
    pixels = PixelSettings(
        size=None,
        resample=read.read_value(values, "resample", read.filter_of_pillow, source) or 0,
        crop=None,
        rescale=read.read_value(values, "rescale_factor", read.number, source),
        mean=read.read_value(values, "image_mean", read.channels, source),
        std=read.read_value(values, "image_std", read.divisors, source),
    )
    found = GridSettings(pixels, tower.cell, bounds["shortest_edge"], bounds["longest_edge"])
    if found.least > found.most:
        raise CorruptModelError(
            f"{source}: pictures would have at least {found.least} and at most {found.most} pixels"
        )
    return found


def _bounds(values: Mapping[str, Any], source: str) -> dict[str, int]:
    """Read the bounds on pixels, as `size` or under their older names."""

    def parse(size: Any) -> dict[str, int]:
        edges = {"shortest_edge", "longest_edge"} & set(size)
        return {key: read.whole_number(size[key]) for key in edges}

    found = read.read_value(values, "size", parse, source) or {}
    for old, key in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if (value := read.read_value(values, old, read.whole_number, source)) is not None:
            found[key] = value
    return found


def _check(given: Mapping[str, Any], tower: QwenTowerConfig, source: str) -> None:
    off = [name for name in _SWITCHES if given.get(name) is False]
    if off:
        raise UnsupportedModelError(f"{source}: {off[0]} is false, which is not supported")
    for key, attribute in _SAME.items():
        wanted = getattr(tower, attribute)
        if given.get(key, wanted) != wanted:
            raise CorruptModelError(
                f"{source}: {key} is {given[key]!r}, the vision tower takes {wanted}"
            )
