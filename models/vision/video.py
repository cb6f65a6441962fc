"""Reading of evenly spaced frames of a video.

Pillow reads animated pictures, PyAV other files. PyAV contains FFmpeg and is an optional extra:
`pip install sgl-mlx[video]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from sgl_mlx.errors import ImageError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.gif import SIGNATURE
from sgl_mlx.models.vision.image import (
    DEFAULT,
    begins_with,
    check_size,
    name_of,
    open_frames,
    open_stream,
)

T = TypeVar("T")

_ANIMATED = ("PNG", "WEBP")  # and GIF
_RATE = 24.0
"""Frames per second of a video that does not state it, as transformers assumes."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video as RGB, and the times at which they are shown.

    Attributes:
        frames: the frames that were taken from the video, in order.
        seconds: the time of each frame, from the video's beginning.
        duration: duration of the whole video, in seconds.
    """

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    duration: float


def read_clip(source: str | Path | bytes, count: int, limits: Limits = DEFAULT) -> Clip:
    """Read at most `count` evenly spaced frames of a video, the first frame among them.

    Takes the frames that `even_indices` chooses, as transformers' video processors do.

    Raises:
        ImageError: when the video cannot be read, has no frames or too large ones, when PyAV is
            needed and not installed, or when `count` is below 1.
        LimitError: when the video has too many bytes or pixels, or `count` is too large.
    """
    if count < 1:
        raise ImageError(f"count must be at least 1, got {count}")
    limits.check("max_frames", count, f"{count:,} frames are asked for")
    name = name_of(source)
    stream = open_stream(source, name, limits)
    if _is_animation(stream):
        ends = list(accumulate(map(_seconds, open_frames(source, limits))))
        indices = even_indices(len(ends), count)
        frames = _pick(open_frames(source, limits), indices)
        begins = [0.0, *ends]
        return Clip(tuple(frames), tuple(begins[i] for i in indices), ends[-1])
    return _read_with_pyav(stream, count, name, limits)


def even_indices(total: int, count: int) -> list[int]:
    """Return the indices of `count` evenly spaced frames of `total`: `i * total // count`.

    Returns all indices if `total` is at most `count`.
    """
    if total <= count:
        return list(range(total))
    return [i * total // count for i in range(count)]


def _pick(frames: Iterable[T], indices: Sequence[int]) -> Iterator[T]:
    wanted = set(indices)
    return (frame for index, frame in enumerate(frames) if index in wanted)


def _is_animation(stream: Path | BytesIO) -> bool:
    if begins_with(stream, SIGNATURE):
        return True
    try:
        with Image.open(stream, formats=_ANIMATED):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # a broken picture: `open_frames` raises the error
        return True
    finally:
        if isinstance(stream, BytesIO):
            stream.seek(0)


def _seconds(frame: Image.Image) -> float:
    """Return the duration of an animation's frame."""
    return float(frame.info.get("duration", 1000 / _RATE)) / 1000


def _read_with_pyav(stream: Path | BytesIO, count: int, name: str, limits: Limits) -> Clip:
    """Read frames with PyAV; decodes twice, first to count frames, as few files state a count.

    Times follow from the average rate of frames, as in transformers.
    """
    try:
        import av  # optional, and large
    except ImportError as e:
        raise ImageError(
            f"{name} needs PyAV to be read: pip install 'sgl-mlx[video]'; animated GIF, PNG and "
            "WebP do without"
        ) from e
    try:
        with av.open(stream, "r") as container:
            total = sum(1 for _ in _decoded(container, name, limits))
            container.seek(0)
            indices = even_indices(total, count)
            chosen = _pick(_decoded(container, name, limits), indices)
            found = tuple(frame.to_image() for frame in chosen)
            rate = float(container.streams.video[0].average_rate or _RATE)
    except (av.FFmpegError, IndexError) as e:  # IndexError: no stream of pictures
        raise ImageError(f"{name} is no video that can be read: {e}") from e
    if not found:
        raise ImageError(f"{name} has no frames")
    return Clip(found, tuple(i / rate for i in indices[: len(found)]), total / rate)


def _decoded(container: Any, name: str, limits: Limits) -> Iterator[Any]:
    stream = container.streams.video[0]
    check_size(stream.width or 0, stream.height or 0, name, limits)
    yield from container.decode(stream)
