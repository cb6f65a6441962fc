"""Vision part of a loaded model: turns pictures into pixels, and pixels into features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from sgl_mlx.errors import ImageError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.config import VisionConfig
from sgl_mlx.models.vision.families import FAMILIES, Tiled
from sgl_mlx.models.vision.image import DEFAULT, Source, open_image
from sgl_mlx.models.vision.layout import Layout
from sgl_mlx.models.vision.pixels import Pixels, PixelSettings, to_input
from sgl_mlx.models.vision.tower import VisionNetwork

_BATCH_BYTES = 256 << 20
"""Rough limit for the bytes that one batch of tiles takes while it is encoded."""


@dataclass(frozen=True)
class Placeholder:
    """Text that stands for a picture or a video in a prompt.

    Attributes:
        id: id of the token with this text; None if the vocabulary has no such token.
    """

    text: str
    id: int | None


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A picture or a video, ready to be encoded.

    Attributes:
        pixels: `(tiles, side, side, 3)`, normalised.
        content_hash: 32 bytes that depend on the decoded pixels, the settings and the layout; with
            one model, equal hashes mean equal features.
        tokens: number of tokens that the picture or video takes in the prompt.
        layout: how the tiles' features are arranged as tokens.
    """

    pixels: NDArray[np.float32]
    content_hash: bytes
    tokens: int
    layout: Layout


class VisionModel:
    """Vision part of one model: prepares pictures on any thread, encodes them on the model's.

    Attributes:
        image_token: the placeholder of a picture in a prompt.
        video_token: the placeholder of a video; None if the family takes no video.
    """

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
        """Open and process a picture, without mlx; may run on any thread.

        Args:
            alone: True if the prompt has no other picture. LLaVA-OneVision cuts a picture into
                tiles only then.
            limits: bounds on its bytes and pixels.

        Raises:
            ImageError: as `open_image`, and for a picture too long and thin to be resized.
        """
        pixels = np.asarray(open_image(source, limits))
        return self._finish(self._family.image(pixels, alone), [pixels])

    def prepare_video(self, frames: Sequence[Source], limits: Limits = DEFAULT) -> PreparedImage:
        """Process the frames of a video, as `prepare` processes a picture.

        Raises:
            ImageError: as `prepare`, when there are no frames, or the family takes no video.
        """
        if not frames:
            raise ImageError("the video has no frames")
        pixels = [np.asarray(open_image(frame, limits)) for frame in frames]
        return self._finish(self._family.video(pixels), pixels)

    def encode(self, images: Sequence[PreparedImage]) -> list[mx.array]:
        """Encode pictures and return the evaluated features `(tokens, text width)` of each.

        Must run on the thread that runs the model. Tiles of different pictures share batches, whose
        size is limited (`batch_tiles`).
        """
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
