"""Processing of pictures to the tower's input, as in transformers' Pillow processors.

Pillow resizes 8-bit pixels. The pixels are then rescaled in float64 and normalised in float32, so
that results are equal to transformers' to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgl_mlx.errors import ImageError

MAX_PIXELS = 64_000_000
"""Most pixels that a resized picture has; this many take 192 MB as RGB."""

Size = tuple[int, int]
"""Size as height and width."""

Pixels = NDArray[np.uint8]
"""Pixels `(height, width, 3)`."""


@dataclass(frozen=True)
class PixelSettings:
    """Settings by which pictures become the tower's input; from `preprocessor_config.json`.

    Attributes:
        size: length of the shorter edge, or height and width, after resizing; None does not resize.
        resample: Pillow's filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
        crop: height and width to cut out of the middle after resizing; None does not crop.
        rescale: factor for the 8-bit values; None does not rescale.
        mean, std: for each channel, the mean to subtract and the standard deviation to divide by;
            if either is None, the step is skipped.
        square: True pads to a square in the mean colour before resizing.
        candidates: resolutions that any-resolution tiling chooses from; empty if none are given.
    """

    size: int | Size | None
    resample: int
    crop: Size | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    square: bool = False
    candidates: tuple[Size, ...] = ()

    @property
    def tile(self) -> Size:
        """Height and width of a processed picture; (0, 0) if it is neither resized nor cropped.

        Without a crop, a `size` that is only the shorter edge counts for both edges.
        """
        if self.crop is not None:
            return self.crop
        return (self.size, self.size) if isinstance(self.size, int) else self.size or (0, 0)

    @property
    def mean_colour(self) -> tuple[int, ...]:
        return tuple(int(value * 255) for value in self.mean or (0.0, 0.0, 0.0))


def to_input(pixels: Pixels, settings: PixelSettings) -> NDArray[np.float32]:
    """Resize, crop and normalise a picture to `(height, width, 3)`.

    Raises:
        ImageError: when the picture is so long and thin that resizing would exceed `MAX_PIXELS`.
    """
    if settings.size is not None:
        pixels = resize(pixels, _target(pixels, settings.size), settings.resample)
    if settings.crop is not None:
        pixels = _centred(_centred(pixels, 0, settings.crop[0]), 1, settings.crop[1])
    return normalised(pixels, settings)


def resize(pixels: Pixels, size: Size, resample: int) -> Pixels:
    """Resize to exactly `size`, with antialiasing; raises `ImageError` above `MAX_PIXELS`."""
    _check_room(size)
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling(resample))
    return np.asarray(image)


def pad_to_square(pixels: Pixels, colour: tuple[int, ...]) -> Pixels:
    """Centre the picture in a square with the side of its longer edge, filled with `colour`.

    Raises:
        ImageError: when the square would exceed `MAX_PIXELS`.
    """
    height, width = pixels.shape[:2]
    side = max(height, width)
    _check_room((side, side))
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _target(pixels: Pixels, size: int | Size) -> Size:
    if not isinstance(size, int):
        return size
    height, width = pixels.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def _check_room(size: Size) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"the picture is too long and thin: it would become {size[1]:,} x {size[0]:,} pixels, "
            f"more than {MAX_PIXELS:,}; crop it first"
        )


def _centred(pixels: Pixels, axis: int, length: int) -> Pixels:
    """Crop an axis to the middle `length` pixels; pad a shorter axis with black on both sides."""
    missing = length - pixels.shape[axis]
    if missing > 0:
        around = [(0, 0)] * 3
        around[axis] = (missing - missing // 2, missing // 2)
        return np.pad(pixels, around)
    start = -missing // 2
    return pixels[start : start + length] if axis == 0 else pixels[:, start : start + length]


def normalised(pixels: Pixels, settings: PixelSettings) -> NDArray[np.float32]:
    """Rescale pixels in float64, then normalise them in float32."""
    scale = 1.0 if settings.rescale is None else settings.rescale
    values = (pixels.astype(np.float64) * scale).astype(np.float32)
    if settings.mean is None or settings.std is None:
        return values
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    return (values - mean) / std
