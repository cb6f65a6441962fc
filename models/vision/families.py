"""LLaVA families: how each cuts a picture into tiles and arranges features as tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sgl_mlx.errors import ImageError
from sgl_mlx.models.vision.anyres import cut
from sgl_mlx.models.vision.config import VisionConfig
from sgl_mlx.models.vision.layout import AnyRes, Ended, Frames, Layout, Plain
from sgl_mlx.models.vision.pixels import Pixels, PixelSettings, pad_to_square

Tiled = tuple[list[Pixels], Layout]
"""Tiles before resizing and normalising, and the layout of the tiles' features."""


class Family(ABC):
    """Tiling of pictures and videos in one LLaVA family, for one model's configuration."""

    def __init__(self, config: VisionConfig, settings: PixelSettings) -> None:
        self.config = config
        self.settings = settings

    @abstractmethod
    def image(self, pixels: Pixels, alone: bool) -> Tiled:
        """Cut a picture into tiles; `alone` is True if the prompt has no other picture."""

    def video(self, frames: Sequence[Pixels]) -> Tiled:
        """Make the tiles of a video, one for each frame.

        Raises:
            ImageError: if the family takes no video.
        """
        raise ImageError(f"{self.config.family} takes pictures, no video; pass single frames")


class Llava(Family):
    """LLaVA-1.5: the picture as one tile. arXiv 2310.03744."""

    def image(self, pixels: Pixels, alone: bool) -> Tiled:
        if self.settings.square:
            pixels = pad_to_square(pixels, self.settings.mean_colour)
        return [pixels], Plain(self.config.tokens_per_tile)


class LlavaNext(Family):
    """LLaVA-NeXT (1.6): the whole picture as one tile, then tiles at a higher resolution."""

    def image(self, pixels: Pixels, alone: bool) -> Tiled:
        tiles, grid = cut(pixels, self.settings)
        size = pixels.shape[0], pixels.shape[1]
        side = self.config.tower.patches
        return tiles, AnyRes(size, grid, side, self.config.most_tiles)


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: a lone picture becomes several tiles, several become one tile each.

    A video has one tile for each frame. Source: arXiv 2408.03326, section 3.2.
    """

    def image(self, pixels: Pixels, alone: bool) -> Tiled:
        if alone:
            return super().image(pixels, alone)
        square = pad_to_square(pixels, self.settings.mean_colour)
        return [square], Ended(self.config.tokens_per_tile)

    def video(self, frames: Sequence[Pixels]) -> Tiled:
        return list(frames), Frames(len(frames), self.config.tower.patches)


FAMILIES: dict[str, type[Family]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
}
