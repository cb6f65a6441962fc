"""Interface of a model's vision part: pictures to pixels, and pixels to features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.image import DEFAULT, Source
from sgl_mlx.models.vision.layout import Layout
from sgl_mlx.models.vision.pixels import Size
from sgl_mlx.models.vision.video import Clip


@dataclass(frozen=True)
class Placeholder:
    """Text that stands for a picture or a video in a prompt.

    Attributes:
        id: id of the token with this text; None if the vocabulary has no such token.
        before, after: special tokens that the model expects around a picture, as text and id;
            None for no such token.
    """

    text: str
    id: int | None
    before: tuple[str, int] | None = None
    after: tuple[str, int] | None = None


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A picture or a video, ready to be encoded.

    Attributes:
        pixels: normalised pixels: `(tiles, side, side, 3)` of a LLaVA, `(times, frames, height,
            width, 3)` of a Qwen model, where a picture has one time and one frame.
        content_hash: 32 bytes that depend on the decoded pixels, the settings and the layout; with
            one model, equal hashes mean equal features.
        tokens: number of tokens that the picture or video takes in the prompt.
        layout: how the features are arranged as tokens.
        grid: rows and columns of the tokens, if the model gives each token a row and a column as
            its position (M-RoPE); None if positions count tokens.
        times: with a grid, the positions in time, each of one grid of tokens, counted from the
            first.
    """

    pixels: NDArray[np.float32]
    content_hash: bytes
    tokens: int
    layout: Layout
    grid: Size | None = None
    times: tuple[int, ...] = (0,)


class Segment(NamedTuple):
    """A text in a prompt, usually empty, and then a picture, a video or a part of a video."""

    text: str
    image: PreparedImage


class VisionModel(Protocol):
    """Vision part of one model: prepares pictures on any thread, encodes them on the model's."""

    @property
    def network(self) -> nn.Module:
        """The module with the weights."""
        ...

    @property
    def image_token(self) -> Placeholder:
        """The placeholder of a picture in a prompt."""
        ...

    @property
    def video_token(self) -> Placeholder | None:
        """The placeholder of a video; None if the model takes no video."""
        ...

    def prepare(
        self, source: Source, *, alone: bool = True, limits: Limits = DEFAULT
    ) -> PreparedImage:
        """Open and process a picture, without mlx; may run on any thread.

        Args:
            alone: True if the prompt has no other picture.
            limits: bounds on its bytes and pixels.

        Raises:
            ImageError: as `open_image`, and for a picture too long and thin to be resized.
        """
        ...

    def prepare_video(self, clip: Clip, limits: Limits = DEFAULT) -> tuple[Segment, ...]:
        """Process the frames of a video, as `prepare` processes a picture.

        Returns:
            What stands for the video in a prompt, one segment after another.

        Raises:
            ImageError: as `prepare`, when there are no frames or too many pixels, or the model
                takes no video.
        """
        ...

    def encode(self, images: Sequence[PreparedImage]) -> list[mx.array]:
        """Encode pictures and return the evaluated features `(tokens, width)` of each.

        The width is the language model's, times one more than the layers that features are added
        to. Must run on the thread that runs the model.
        """
        ...
