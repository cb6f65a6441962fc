"""Vision part of a Qwen model: a picture becomes one grid of tokens of its own shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sgl_mlx.errors import ImageError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.image import DEFAULT, Source, open_image
from sgl_mlx.models.vision.model import Placeholder, PreparedImage
from sgl_mlx.models.vision.pixels import Size
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig
from sgl_mlx.models.vision.qwen.pixels import GridSettings, to_grid
from sgl_mlx.models.vision.qwen.tower import QwenTower

_BATCH_BYTES = 256 << 20
"""Rough limit for the bytes that one batch of pictures takes while it is encoded."""


@dataclass(frozen=True)
class Grid:
    """Layout of a picture whose tokens are its cells, row by row."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        return features[0]


class QwenVision:
    """A `VisionModel` of the Qwen families."""

    def __init__(
        self,
        config: QwenTowerConfig,
        settings: GridSettings,
        network: QwenTower,
        image_token: Placeholder,
    ) -> None:
        self.config = config
        self.settings = settings
        self.network = network
        self.image_token = image_token
        self.video_token: Placeholder | None = None

    def prepare(
        self, source: Source, *, alone: bool = True, limits: Limits = DEFAULT
    ) -> PreparedImage:
        """Open and process a picture; `alone` makes no difference."""
        original = np.asarray(open_image(source, limits))
        pixels = to_grid(original, self.settings)
        height, width = (edge // self.config.cell for edge in pixels.shape[:2])
        layout = Grid(height, width)
        digest = hashlib.sha256(repr((self.settings, layout, original.shape)).encode())
        digest.update(np.ascontiguousarray(original).data)
        return PreparedImage(
            pixels=pixels[None],
            content_hash=digest.digest(),
            tokens=layout.tokens,
            layout=layout,
            grid=(height, width),
        )

    def prepare_video(self, frames: Sequence[Source], limits: Limits = DEFAULT) -> PreparedImage:
        """Raise `ImageError`: videos do not run here."""
        raise ImageError("a Qwen model takes pictures here, no video; pass single frames")

    def encode(self, images: Sequence[PreparedImage]) -> list[mx.array]:
        """Encode pictures; those of equal size share batches."""
        found: dict[int, mx.array] = {}
        for batch in self._batches(images):
            stacked = mx.array(np.concatenate([images[i].pixels for i in batch]))
            features = self.network(stacked)
            mx.eval(features)
            found.update(zip(batch, features, strict=True))
        return [found[i] for i in range(len(images))]

    def _batches(self, images: Sequence[PreparedImage]) -> Iterator[list[int]]:
        """Group the indices of pictures of equal size, as many as a batch may have."""
        by_size: dict[Size, list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault((image.pixels.shape[1], image.pixels.shape[2]), []).append(i)
        for (height, width), members in by_size.items():
            patches = (height // self.config.patch) * (width // self.config.patch)
            most = max(1, _BATCH_BYTES // (4 * patches * self._floats_per_patch))
            yield from (members[i : i + most] for i in range(0, len(members), most))

    @property
    def _floats_per_patch(self) -> int:
        """Number of intermediate values of a patch that exist at once, roughly."""
        config = self.config
        inputs = config.frames * config.patch**2 * config.channels
        return inputs + 6 * config.width + 2 * config.hidden + config.features
