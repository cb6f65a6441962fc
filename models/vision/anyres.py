"""Arithmetic of any-resolution tiling (LLaVA-NeXT), rounded exactly as transformers rounds.

Every size is a pair of height and width. https://llava-vl.github.io/blog/2024-01-30-llava-next/
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sgl_mlx.models.vision.pixels import Pixels, PixelSettings, Size, resize


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """Choose the candidate that keeps the most pixels of the picture; if tied, the smallest."""

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[1] / size[1], candidate[0] / size[0])
        scaled = int(size[1] * scale) * int(size[0] * scale)
        kept = min(scaled, size[0] * size[1])
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=merit)


def fitted(size: Size, box: Size) -> Size:
    """Compute the largest size inside `box` with the proportions of `size`, rounded up."""
    scale_height, scale_width = box[0] / size[0], box[1] / size[1]
    if scale_width < scale_height:
        return min(math.ceil(size[0] * scale_width), box[0]), box[1]
    return box[0], min(math.ceil(size[1] * scale_height), box[1])


def cut(pixels: Pixels, settings: PixelSettings) -> tuple[list[Pixels], Size]:
    """Cut a picture into tiles, after resizing and padding it to the best candidate resolution.

    Returns:
        A list with the whole picture, resized to about one tile, and then the tiles row by row.
        After the list, the numbers of rows and columns of tiles.
    """
    height, width = settings.tile
    box = best_resolution(_size(pixels), settings.candidates)
    canvas = _padded(resize(pixels, fitted(_size(pixels), box), settings.resample), box)
    whole = resize(pixels, _whole(settings), settings.resample)
    grid = box[0] // height, box[1] // width
    parts = canvas.reshape(grid[0], height, grid[1], width, 3).swapaxes(1, 2)
    return [whole, *parts.reshape(-1, height, width, 3)], grid


def kept(size: Size, patches: Size) -> tuple[slice, slice]:
    """Find the rows and columns of patches that show the picture, not padding.

    Args:
        size: size of the picture before resizing.
        patches: number of rows and columns of patches.
    """
    height, width = patches
    if size[1] / size[0] > width / height:
        margin = (height - int(round(size[0] * (width / size[1]), 7))) // 2
        return slice(margin, height - margin), slice(0, width)
    margin = (width - int(round(size[1] * (height / size[0]), 7))) // 2
    return slice(0, height), slice(margin, width - margin)


def _size(pixels: Pixels) -> Size:
    return pixels.shape[0], pixels.shape[1]


def _whole(settings: PixelSettings) -> Size:
    """Return the size to which the whole picture is resized for its own tile, before cropping."""
    if settings.size is None:
        return settings.tile
    return (settings.size, settings.size) if isinstance(settings.size, int) else settings.size


def _padded(pixels: Pixels, box: Size) -> Pixels:
    """Centre the picture in a black box; an odd row or column of padding comes last."""
    around = [(rest // 2, rest - rest // 2) for rest in np.subtract(box, pixels.shape[:2])]
    return np.pad(pixels, [*around, (0, 0)])
