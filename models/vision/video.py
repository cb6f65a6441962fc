"""Reading of evenly spaced frames of a video.

Pillow reads animated pictures, PyAV other files. PyAV contains FFmpeg and is an optional extra:
`pip install sgl-mlx[video]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

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

_ANIMATED = ("PNG", "WEBP")  # and GIF


def read_frames(
    source: str | Path | bytes, count: int, limits: Limits = DEFAULT
) -> list[Image.Image]:
    """Read at most `count` evenly spaced frames as RGB, the first frame among them.

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
        total = sum(1 for _ in open_frames(source, limits))
        return list(_pick(open_frames(source, limits), even_indices(total, count)))
    return _read_with_pyav(stream, count, name, limits)


def even_indices(total: int, count: int) -> list[int]:
    """Return the indices of `count` evenly spaced frames of `total`: `i * total // count`.

    Returns all indices if `total` is at most `count`.
    """
    if total <= count:
        return list(range(total))
    return [i * total // count for i in range(count)]


def _pick(frames: Iterable[Image.Image], indices: Sequence[int]) -> Iterator[Image.Image]:
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


def _read_with_pyav(
    stream: Path | BytesIO, count: int, name: str, limits: Limits
) -> list[Image.Image]:
    """Read frames with PyAV; decodes twice, first to count frames, as few files state a count."""
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
            frames = (frame.to_image() for frame in _decoded(container, name, limits))
            found = list(_pick(frames, even_indices(total, count)))
    except (av.FFmpegError, IndexError) as e:  # IndexError: no stream of pictures
        raise ImageError(f"{name} is no video that can be read: {e}") from e
    if not found:
        raise ImageError(f"{name} has no frames")
    return found


def _decoded(container: Any, name: str, limits: Limits) -> Iterator[Any]:
    stream = container.streams.video[0]
    check_size(stream.width or 0, stream.height or 0, name, limits)
    yield from container.decode(stream)
