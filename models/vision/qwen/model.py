"""Vision part of a Qwen model: a picture becomes one grid of tokens of its own shape.

A video has such a grid for each pair of its frames, in published models.
"""

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
from sgl_mlx.models.vision.image import DEFAULT, Source, open_image
from sgl_mlx.models.vision.model import Placeholder, PreparedImage, Segment
from sgl_mlx.models.vision.pixels import Pixels
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig
from sgl_mlx.models.vision.qwen.pixels import GridSettings, to_grid
from sgl_mlx.models.vision.qwen.tower import QwenTower
from sgl_mlx.models.vision.qwen.video import VideoSettings, stamps_of, times_of, to_patches
from sgl_mlx.models.vision.video import Clip

_BATCH_BYTES = 256 << 20
"""Rough limit for the bytes that one batch of pictures takes while it is encoded."""


@dataclass(frozen=True)
class Grid:
    """Layout of a picture whose tokens are its cells, row by row; of a video, at several times."""

    rows: int
    columns: int
    times: tuple[int, ...] = (0,)

    @property
    def tokens(self) -> int:
        return len(self.times) * self.rows * self.columns

    def pack(self, features: mx.array, newline: mx.array | None) -> mx.array:
        return features[0]


class QwenVision:
    """A `VisionModel` of the Qwen families."""

    def __init__(
        self,
        config: QwenTowerConfig,
        settings: GridSettings,
        video_settings: VideoSettings,
        network: QwenTower,
        image_token: Placeholder,
        video_token: Placeholder,
    ) -> None:
        self.config = config
        self.settings = settings
        self.video_settings = video_settings
        self.network = network
        self.image_token = image_token
        self.video_token = video_token

    def prepare(
        self, source: Source, *, alone: bool = True, limits: Limits = DEFAULT
    ) -> PreparedImage:
        """Open and process a picture; `alone` makes no difference."""
        original = np.asarray(open_image(source, limits))
        pixels = to_grid(original, self.settings)
        return self._prepared(pixels[None, None], [original], self.settings)

    def prepare_video(self, clip: Clip, limits: Limits = DEFAULT) -> tuple[Segment, ...]:
        """Process the frames of a video; returns one segment, or one for each patch in time."""
        if not clip.frames:
            raise ImageError("the video has no frames")
        frames = [np.asarray(open_image(frame, limits)) for frame in clip.frames]
        patches, settings = to_patches(frames, self.video_settings), self.video_settings
        if not self.config.stamped:
            times = times_of(clip, len(patches), self.config)
            return (Segment("", self._prepared(patches, frames, settings, times)),)
        return tuple(
            Segment(stamp, self._prepared(patches[i : i + 1], frames[first:last], settings))
            for i, stamp in enumerate(stamps_of(clip, self.config))
            for first, last in [(i * self.config.frames, (i + 1) * self.config.frames)]
        )

    def _prepared(
        self,
        pixels: NDArray[np.float32],
        originals: Sequence[Pixels],
        settings: GridSettings | VideoSettings,
        times: tuple[int, ...] = (0,),
    ) -> PreparedImage:
        """Make a picture or video of pixels `(times, frames, height, width, 3)`."""
        height, width = (edge // self.config.cell for edge in pixels.shape[2:4])
        layout = Grid(height, width, times)
        shapes = [original.shape for original in originals]
        digest = hashlib.sha256(repr((settings, layout, shapes)).encode())
        for original in originals:
            digest.update(np.ascontiguousarray(original).data)
        return PreparedImage(
            pixels=pixels,
            content_hash=digest.digest(),
            tokens=layout.tokens,
            layout=layout,
            grid=(height, width),
            times=times,
        )

    def encode(self, images: Sequence[PreparedImage]) -> list[mx.array]:
        """Encode pictures and videos; patches in time of equal size share batches."""
        patches = [patch for image in images for patch in image.pixels]
        found: dict[int, mx.array] = {}
        for batch in self._batches(patches):
            features = self.network(mx.array(np.stack([patches[i] for i in batch])))
            mx.eval(features)
            found.update(zip(batch, features, strict=True))
        ordered = iter([found[i] for i in range(len(patches))])
        joined = [mx.concatenate(list(islice(ordered, len(x.pixels)))) for x in images]
        mx.eval(joined)
        return joined

    def _batches(self, patches: Sequence[NDArray[np.float32]]) -> Iterator[list[int]]:
        """Group the indices of patches in time of equal size, as many as a batch may have."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, patch in enumerate(patches):
            by_size.setdefault(patch.shape, []).append(i)
        for (_, height, width, _), members in by_size.items():
            count = (height // self.config.patch) * (width // self.config.patch)
            most = max(1, _BATCH_BYTES // (4 * count * self._floats_per_patch))
            yield from (members[i : i + most] for i in range(0, len(members), most))

    @property
    def _floats_per_patch(self) -> int:
        """Number of intermediate values of a patch that exist at once, roughly."""
        config = self.config
        inputs = config.frames * config.patch**2 * config.channels
        return inputs + 6 * config.width + 2 * config.hidden + config.features
