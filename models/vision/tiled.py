"""Vision part of a LLaVA: cuts pictures into tiles of one size, and encodes these in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import mlx.core as mx
import numpy as np

from sgl_mlx.errors import ImageError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.config import VisionConfig
from sgl_mlx.models.vision.families import FAMILIES, Tiled
from sgl_mlx.models.vision.image import DEFAULT, Source, open_image
from sgl_mlx.models.vision.layout import Layout
from sgl_mlx.models.vision.model import Placeholder, PreparedImage, Segment
from sgl_mlx.models.vision.pixels import Pixels, PixelSettings, to_input
from sgl_mlx.models.vision.tower import VisionNetwork
from sgl_mlx.models.vision.video import Clip

_BATCH_BYTES = 256 << 20
"""Rough limit for the bytes that one batch of tiles takes while it is encoded."""


class TiledVision:
    """A `VisionModel` of the LLaVA families."""

    def __init__(
        self, config: VisionConfig, settings: PixelSettings, network: VisionNetwork
    ) -> None:
        self.config = config
        self.settings = settings
        self.network = network
        self.image_token = Placeholder("<image>", config.image_token)
        has_video = config.family == "llava_onevision"
        self.video_token = Placeholder("<video>", config.video_token) if has_video else None
        self._family = FAMILIES[config.family](config, settings)

    def prepare(
        self, source: Source, *, alone: bool = True, limits: Limits = DEFAULT
    ) -> PreparedImage:
        """Open and process a picture; LLaVA-OneVision cuts it into tiles only if `alone`."""
        pixels = np.asarray(open_image(source, limits))
        return self._finish(self._family.image(pixels, alone), [pixels])

    def prepare_video(self, clip: Clip, limits: Limits = DEFAULT) -> tuple[Segment, ...]:
        """Process the frames of a video; raises `ImageError` if the family takes no video."""
        if not clip.frames:
            raise ImageError("the video has no frames")
        pixels = [np.asarray(open_image(frame, limits)) for frame in clip.frames]
        return (Segment("", self._finish(self._family.video(pixels), pixels)),)

    def encode(self, images: Sequence[PreparedImage]) -> list[mx.array]:
        """Encode pictures; their tiles share batches of a limited size (`batch_tiles`)."""
        features = self._features(images)
        found = []
        for image in images:
            tiles = mx.stack(list(islice(features, len(image.pixels))))
            packed = image.layout.pack(tiles, self.network.newline)
            mx.eval(packed)
            found.append(packed)
        return found

    @property
    def batch_tiles(self) -> int:
        """Maximum number of tiles that are encoded at once."""
        tower = self.config.tower
        scores = tower.heads * tower.positions**2
        layers = tower.positions * (2 * tower.hidden + 4 * tower.width + self.config.text_width)
        return max(1, _BATCH_BYTES // (4 * (scores + layers)))

    def _features(self, images: Sequence[PreparedImage]) -> Iterator[mx.array]:
        tiles = (tile for image in images for tile in image.pixels)
        while batch := list(islice(tiles, self.batch_tiles)):
            features = self.network(mx.array(np.stack(batch)))
            mx.eval(features)
            yield from features

    def _finish(self, tiled: Tiled, sources: Sequence[Pixels]) -> PreparedImage:
        tiles, layout = tiled
        return PreparedImage(
            pixels=np.stack([to_input(tile, self.settings) for tile in tiles]),
            content_hash=self._hash(layout, sources),
            tokens=layout.tokens,
            layout=layout,
        )

    def _hash(self, layout: Layout, sources: Sequence[Pixels]) -> bytes:
        digest = hashlib.sha256(repr((self.settings, layout)).encode())
        for pixels in sources:
            digest.update(repr(pixels.shape).encode())
            digest.update(np.ascontiguousarray(pixels).data)
        return digest.digest()
