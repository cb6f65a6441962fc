"""Processing of videos for Qwen's towers: sizes of frames, patches in time, and their times.

A patch in time has a pair of frames, in published models. Qwen2-VL and Qwen2.5-VL show a video as
one block of tokens; Qwen3-VL and Qwen3.5 show each pair as a picture, after its time as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgl_mlx.errors import ImageError
from sgl_mlx.models.vision import settings as read
from sgl_mlx.models.vision.pixels import MAX_PIXELS, Pixels, Size, normalised, resize
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig
from sgl_mlx.models.vision.qwen.pixels import (
    COMMON,
    COMMON_QWEN2,
    GridSettings,
    fitted,
    parse_grid_settings,
)
from sgl_mlx.models.vision.video import Clip

_FILE = "video_preprocessor_config.json"
_DEFAULTS = COMMON | {"size": {"shortest_edge": 131_072, "longest_edge": 786_432}}
_QWEN2 = COMMON_QWEN2 | {"size": {"shortest_edge": 100_352, "longest_edge": 602_112}}
_TOKENS, _TOKENS_QWEN2 = 768, 128_000
"""Default of `max_video_tokens`: tokens of a frame, and in Qwen2 of the whole context."""
_SHARE = 0.9
"""Part of the context that a video may take in Qwen2."""
_FLOOR = 1.05
"""A limit for each frame is at least this many times the least number of pixels."""


@dataclass(frozen=True)
class VideoSettings:
    """Settings by which a video's frames become the tower's input.

    Attributes:
        grid: settings of the frames; the bounds on pixels hold for each frame or, if `whole`, for
            all frames together.
        frames: frames in a patch.
        whole: see `grid`.
        tokens: limit on a video's tokens, from which a limit for each frame follows
            (`cap_pixels_per_frame`); None for no such limit.
    """

    grid: GridSettings
    frames: int
    whole: bool
    tokens: int | None = None

    def size(self, size: Size, count: int) -> Size:
        """Compute the size of each of `count` frames after resizing, as transformers does.

        Raises:
            ImageError: when a frame is more than 200 times as long as wide.
        """
        cell, least, most = self.grid.cell, self.grid.least, self.grid.most
        if not self.whole:
            if self.tokens is not None:
                room = int(self.tokens * cell * cell * _SHARE) * self.frames // count
                most = max(min(most, room), int(least * _FLOOR))
            return fitted(size, cell, (least, most), 1, 1)
        count = max(count, self.frames)
        if self.tokens is not None:
            most = count * max(min(self.tokens * cell * cell, most // count), int(least * _FLOOR))
        if min(size) < cell:
            grow = max(cell / edge for edge in size)
            size = int(size[0] * grow), int(size[1] * grow)
        rounded = round(count / self.frames) * self.frames
        return fitted(size, cell, (least, most), count, rounded)


def read_video_settings(folder: Path, tower: QwenTowerConfig, family: str) -> VideoSettings:
    """Read a model folder's settings for videos, completed by transformers' defaults.

    Without a file of such settings, those of pictures are taken, as in transformers.

    Raises:
        CorruptModelError, UnsupportedModelError: as `read_grid_settings`, and for a limit on tokens
            that is no whole number from 1.
    """
    files = (_FILE, "preprocessor_config.json")
    path, given = read.find_settings(folder, "video_processor", files) or (folder / _FILE, {})
    assumed, tokens = (_DEFAULTS, _TOKENS) if tower.stamped else (_QWEN2, _TOKENS_QWEN2)
    values: dict[str, Any] = {"max_video_tokens": tokens, **given}
    limit = read.read_value(values, "max_video_tokens", read.whole_number, str(path))
    return VideoSettings(
        grid=parse_grid_settings(given, assumed, tower, str(path)),
        frames=tower.frames,
        whole=tower.stamped,
        tokens=limit if given.get("cap_pixels_per_frame") else None,
    )


def to_patches(frames: Sequence[Pixels], settings: VideoSettings) -> NDArray[np.float32]:
    """Resize and normalise frames to `(times, frames of a patch, height, width, 3)`.

    All frames get the size that follows from the first. The last frame is repeated to fill the last
    patch.

    Raises:
        ImageError: when a frame is more than 200 times as long as wide, or all frames together
            would exceed `pixels.MAX_PIXELS`.
    """
    height, width = settings.size((frames[0].shape[0], frames[0].shape[1]), len(frames))
    if len(frames) * height * width > MAX_PIXELS:
        raise ImageError(
            f"the video is too large: {len(frames)} frames of {width:,} x {height:,} pixels are "
            f"more than {MAX_PIXELS:,} pixels; take fewer frames"
        )
    values = settings.grid.values
    made = [normalised(resize(f, (height, width), values.resample), values) for f in frames]
    made += [made[-1]] * (-len(made) % settings.frames)
    return np.stack(made).reshape(-1, settings.frames, height, width, 3)


def times_of(clip: Clip, patches: int, tower: QwenTowerConfig) -> tuple[int, ...]:
    """Return the position in time of each patch of a video, from the duration between patches.

    The arithmetic is float32, as in transformers. Source: Qwen2.5-VL, arXiv 2502.13923, section
    2.1.2.
    """
    if tower.rate is None:
        return tuple(range(patches))
    seconds = np.float32(tower.frames * clip.duration / len(clip.frames))
    positions = np.arange(patches, dtype=np.float32) * (np.float32(tower.rate) * seconds)
    return tuple(positions.astype(np.int32).tolist())


def stamps_of(clip: Clip, tower: QwenTowerConfig) -> list[str]:
    """Return for each patch of a video its time as text: the middle of its first and last frame."""
    seconds = [*clip.seconds, *[clip.seconds[-1]] * (-len(clip.seconds) % tower.frames)]
    pairs = zip(seconds[:: tower.frames], seconds[tower.frames - 1 :: tower.frames], strict=True)
    return [f"<{(first + last) / 2:.1f} seconds>" for first, last in pairs]
