"""Frames of animations and videos, evenly taken; what cannot be read is refused."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sgl_mlx.errors import ImageError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.video import even_indices, read_frames
from tests.models.vision.test_image import saved


def greys(count: int) -> list[Image.Image]:
    """Frame n is of brightness 10 n."""
    return [Image.new("RGB", (32, 32), (10 * n,) * 3) for n in range(count)]


def animation(format: str, count: int) -> bytes:
    frames = greys(count)
    options = {"lossless": True} if format == "WEBP" else {}
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **options)


def video(count: int) -> bytes:
    stream = BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width = track.height = 32
        track.pix_fmt = "yuv420p"
        for frame in greys(count):
            container.mux(track.encode(av.VideoFrame.from_image(frame)))
        container.mux(track.encode())
    return stream.getvalue()


def brightness(frames: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(frame)[8:24, 8:24].mean()) / 10) for frame in frames]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 3, [0, 3, 6]),
        (3, 8, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
        (7, 1, [0]),
    ],
)
def test_frames_are_taken_evenly_from_the_first(
    total: int, count: int, expected: list[int]
) -> None:
    assert even_indices(total, count) == expected


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_an_animated_picture_is_a_video(format: str, tmp_path: Path) -> None:
    path = tmp_path / "animation"
    path.write_bytes(animation(format, 10))
    for source in (path, str(path), path.read_bytes()):
        assert brightness(read_frames(source, 5)) == [0, 2, 4, 6, 8]


def test_a_video_file_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(video(20))
    for source in (path, str(path), path.read_bytes()):
        frames = read_frames(source, 4)
        assert brightness(frames) == [0, 5, 10, 15]
        assert {frame.mode for frame in frames} == {"RGB"}


def test_a_video_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = video(2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"pip install 'sgl-mlx\[video\]'"):
        read_frames(raw, 2)
    assert len(read_frames(animation("GIF", 3), 2)) == 2


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.02, 0.0])
def test_a_video_cut_short_is_refused_or_shorter(keep: float) -> None:
    raw = video(20)
    try:
        found = read_frames(raw[: int(keep * len(raw))], 4)
    except ImageError:
        return
    assert 1 <= len(found) <= 4


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no video that can be read"):
        read_frames(b"no video at all", 4)
    with pytest.raises(ImageError, match="does not exist"):
        read_frames(tmp_path / "none.mp4", 4)
    with pytest.raises(ImageError, match="not fetched from the network"):
        read_frames("https://host/a.mp4", 4)


def test_a_broken_animation_is_refused() -> None:
    raw = animation("PNG", 4)
    with pytest.raises(ImageError):
        read_frames(raw[: len(raw) // 2], 4)


def test_a_video_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(LimitError, match=r"32 x 32 pixels, .* max_image_pixels is 1,000"):
        read_frames(video(2), 2, Limits(max_image_pixels=1000))
    with pytest.raises(LimitError, match="3 frames are asked for: the limit max_frames is 2"):
        read_frames(video(2), 3, Limits(max_frames=2))


def test_fewer_than_one_frame_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_frames(animation("GIF", 2), 0)
