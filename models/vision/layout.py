"""Layouts: how the features of a picture's tiles are arranged as tokens.

A layout computes the number of tokens (`tokens`) from sizes, before anything is encoded. After
encoding, `pack` arranges features as exactly so many tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import mlx.core as mx

from sgl_mlx.models.vision.anyres import kept
from sgl_mlx.models.vision.pixels import Size

_SHRINK_FROM = 1.1
"""Factor per edge by which features may exceed the limit before they are shrunk."""


class Layout(Protocol):
    """Arrangement of the features of one picture or video as tokens."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the picture or video takes in the prompt."""

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        """Arrange features `(tiles, patches, width)` as tokens `(tokens, width)`.

        Args:
            newline: embedding `(width,)` that ends a row of patches or a tile; None if the family
                has none.
        """


@dataclass(frozen=True)
class Plain:
    """Layout of one tile: its patches in order (LLaVA-1.5)."""

    patches: int

    @property
    def tokens(self) -> int:
        return self.patches

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        return features[0]


@dataclass(frozen=True)
class Ended:
    """Layout of one tile followed by a newline (one of several pictures in LLaVA-OneVision)."""

    patches: int

    @property
    def tokens(self) -> int:
        return self.patches + 1

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        return _append(features[0], newline)


@dataclass(frozen=True)
class AnyRes:
    """Layout of any-resolution tiles (LLaVA-NeXT and a lone picture in LLaVA-OneVision).

    First come the patches of the whole picture. Then come the tiles joined to one image, without
    padding, row by row of patches, with a newline after each row.

    Attributes:
        size: size of the picture before any resizing.
        grid: numbers of rows and columns of tiles.
        side: patches along the edge of a tile.
        most: a joined image with clearly more patches than `most` tiles is shrunk to about the
            patches of `most` tiles (LLaVA-OneVision's `anyres_max_9`). None never shrinks.
    """

    size: Size
    grid: Size
    side: int
    most: int | None = None

    @property
    def tokens(self) -> int:
        height, width = self._shrunk or self._unpadded
        return self.side**2 + height * (width + 1)

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        (rows, columns), side, width = self.grid, self.side, features.shape[-1]
        image = features[1:].reshape(rows, columns, side, side, width).swapaxes(1, 2)
        image = image.reshape(rows * side, columns * side, width)[self._kept]
        if self._shrunk is not None:
            image = bilinear(image, self._shrunk)
        if newline is not None:
            column = mx.broadcast_to(newline, (image.shape[0], 1, width))
            image = mx.concatenate([image, column.astype(image.dtype)], axis=1)
        return mx.concatenate([features[0], image.reshape(-1, width)])

    @cached_property
    def _kept(self) -> tuple[slice, slice]:
        return kept(self.size, (self.grid[0] * self.side, self.grid[1] * self.side))

    @property
    def _unpadded(self) -> Size:
        rows, columns = self._kept
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def _shrunk(self) -> Size | None:
        if self.most is None:
            return None
        height, width = self._unpadded
        ratio = math.sqrt(height * width / (self.most * self.side**2))
        return (int(height // ratio), int(width // ratio)) if ratio > _SHRINK_FROM else None


@dataclass(frozen=True)
class Frames:
    """Layout of a video: its frames, shrunk to half their height and width, then one newline."""

    frames: int
    side: int

    @property
    def tokens(self) -> int:
        return self.frames * self._half**2 + 1

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        width = features.shape[-1]
        images = features.reshape(-1, self.side, self.side, width)
        pooled = [bilinear(image, (self._half, self._half)) for image in images]
        return _append(mx.stack(pooled).reshape(-1, width), newline)

    @property
    def _half(self) -> int:
        return math.ceil(self.side / 2)


def bilinear(image: mx.array, size: Size) -> mx.array:
    """Resize `(height, width, channels)` bilinearly, as torch does with `align_corners=False`."""
    return _along(_along(image, 0, size[0]), 1, size[1])


def _along(image: mx.array, axis: int, length: int) -> mx.array:
    old = image.shape[axis]
    centres = mx.maximum((mx.arange(length) + 0.5) * (old / length) - 0.5, 0.0)
    low = mx.minimum(mx.floor(centres).astype(mx.int32), old - 1)
    high = mx.minimum(low + 1, old - 1)
    weight = (centres - low).astype(image.dtype).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return mx.take(image, low, axis) * (1 - weight) + mx.take(image, high, axis) * weight


def _append(features: mx.array, newline: mx.array | None) -> mx.array:
    if newline is None:
        return features
    return mx.concatenate([features, newline[None].astype(features.dtype)])
