"""Frames of animations and videos, evenly taken; what cannot be read is refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sgl_mlx.errors import ImageError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.video import even_indices, read_clip
from tests.models.vision.test_image import saved


def greys(count: int) -> list[Image.Image]:
    """Frame n is of brightness 10 n."""
    return [Image.new("RGB", (32, 32), (10 * n,) * 3) for n in range(count)]


def animation(format: str, count: int, **options: Any) -> bytes:
    frames = greys(count)
    options |= {"lossless": True} if format == "WEBP" else {}
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


def brightness(frames: Sequence[Image.Image]) -> list[int]:
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
        assert brightness(read_clip(source, 5).frames) == [0, 2, 4, 6, 8]


def test_a_video_file_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(video(20))
    for source in (path, str(path), path.read_bytes()):
        frames = read_clip(source, 4).frames
        assert brightness(frames) == [0, 5, 10, 15]
        assert {frame.mode for frame in frames} == {"RGB"}


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_an_animation_has_its_own_times(format: str) -> None:
    durations = [100, 300, 50, 200, 400]
    found = read_clip(animation(format, 5, duration=durations), 3)
    assert found.seconds == pytest.approx((0.0, 0.1, 0.45))  # frames 0, 1 and 3
    assert found.duration == pytest.approx(1.05)


def test_an_animation_without_times_has_24_frames_a_second() -> None:
    still = read_clip(saved(greys(1)[0], "PNG"), 3)
    assert (still.seconds, still.duration) == ((0.0,), pytest.approx(1 / 24))


def test_the_times_of_a_video_file_follow_from_its_rate() -> None:
    found = read_clip(video(20), 4)
    assert found.seconds == pytest.approx((0.0, 0.5, 1.0, 1.5))
    assert found.duration == pytest.approx(2.0)


def test_a_video_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = video(2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"pip install 'sgl-mlx\[video\]'"):
        read_clip(raw, 2)
    assert len(read_clip(animation("GIF", 3), 2).frames) == 2


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.02, 0.0])
def test_a_video_cut_short_is_refused_or_shorter(keep: float) -> None:
    raw = video(20)
    try:
        found = read_clip(raw[: int(keep * len(raw))], 4).frames
    except ImageError:
        return
    assert 1 <= len(found) <= 4


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no video that can be read"):
        read_clip(b"no video at all", 4)
    with pytest.raises(ImageError, match="does not exist"):
        read_clip(tmp_path / "none.mp4", 4)
    with pytest.raises(ImageError, match="not fetched from the network"):
        read_clip("https://host/a.mp4", 4)


def test_a_broken_animation_is_refused() -> None:
    raw = animation("PNG", 4)
    with pytest.raises(ImageError):
        read_clip(raw[: len(raw) // 2], 4)


def test_a_video_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(LimitError, match=r"32 x 32 pixels, .* max_image_pixels is 1,000"):
        read_clip(video(2), 2, Limits(max_image_pixels=1000))
    with pytest.raises(LimitError, match="3 frames are asked for: the limit max_frames is 2"):
        read_clip(video(2), 3, Limits(max_frames=2))


def test_fewer_than_one_frame_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_clip(animation("GIF", 2), 0)
