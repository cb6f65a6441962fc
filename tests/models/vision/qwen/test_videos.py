"""Qwen's videos as transformers processes and encodes them (`make_video_goldens.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sgl_mlx.errors import ImageError
from sgl_mlx.models.loader import load
from sgl_mlx.models.vision.model import Segment
from sgl_mlx.models.vision.pixels import MAX_PIXELS
from sgl_mlx.models.vision.qwen.config import read_tower
from sgl_mlx.models.vision.qwen.model import QwenVision
from sgl_mlx.models.vision.qwen.video import read_video_settings
from sgl_mlx.models.vision.video import read_clip
from tests.models.vision.clips import clip, write_film, write_watching
from tests.models.vision.conftest import GOLDENS, read_golden
from tests.models.vision.pictures import film, picture
from tests.models.vision.qwen.films import FILMS
from tests.models.vision.qwen.test_parity import NAMES, near

STAMPED = [name for name in NAMES if not name.startswith("qwen2")]
BLOCKS = [name for name in NAMES if name.startswith("qwen2")]
Open = Callable[[str], QwenVision]
each_film = pytest.mark.parametrize("case", FILMS)
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Each golden's vision part, with settings for videos."""

    @cache
    def make(name: str) -> QwenVision:
        folder = write_watching(tmp_path_factory.mktemp("watching") / name, name)
        found = load(folder, dtype="float32").vision
        assert isinstance(found, QwenVision)
        return found

    return make


def golden(name: str, case: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDENS / "qwen_videos.npz") as file:
        prefix = f"{name}/{case}/"
        return {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}


def segments(model: QwenVision, folder: Path, case: str) -> tuple[Segment, ...]:
    shown = FILMS[case]
    file = write_film(folder / "film.png", shown.frames(), shown.milliseconds)
    return model.prepare_video(read_clip(file, shown.count))


def as_patches(pixels: NDArray[np.float32], patch: int, merge: int) -> NDArray[np.float32]:
    """Pixels as transformers orders them: by token, then by channel, frame, row and column."""
    times, frames = pixels.shape[:2]
    rows, columns = (edge // patch // merge for edge in pixels.shape[2:4])
    cut = pixels.reshape(times, frames, rows, merge, patch, columns, merge, patch, 3)
    by_token = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return by_token.reshape(times * rows * columns * merge**2, -1)


@each_name
@each_film
def test_pixels_and_features_are_equal(
    watching: Open, tmp_path: Path, name: str, case: str
) -> None:
    model, expected = watching(name), golden(name, case)
    images = [segment.image for segment in segments(model, tmp_path, case)]
    times, rows, columns = expected["grid"].tolist()
    assert {image.grid for image in images} == {(rows // 2, columns // 2)}
    assert sum(len(image.times) for image in images) == times
    found = np.concatenate([as_patches(image.pixels, 4, 2) for image in images])
    assert np.allclose(found, expected["pixels"], rtol=0, atol=1e-6)  # torch fuses two steps
    features = model.encode(images)
    assert [len(x) for x in features] == [image.tokens for image in images]
    assert near(mx.concatenate(features), expected["packed"])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("capped", [False, True])
def test_sizes_are_those_of_transformers(tmp_path: Path, name: str, capped: bool) -> None:
    tower = read_tower(read_golden(name).config, "config.json")
    plain = read_video_settings(tmp_path, tower, name)
    tokens = (128_000 if name == "qwen2_vl" else 768) if capped else None
    with np.load(GOLDENS / "qwen_videos.npz") as file:
        rows = file[f"sizes/{name[:5]}{'_capped' if capped else ''}"].tolist()
    assert len(rows) > 100
    for count, height, width, least, most, *expected in rows:
        grid = replace(plain.grid, cell=32, least=least, most=most)
        found = replace(plain, grid=grid, tokens=tokens).size((height, width), count)
        assert list(found) == expected


@each_name
def test_settings_are_those_for_videos_then_for_pictures_then_defaults(
    tmp_path: Path, name: str
) -> None:
    tower = read_tower(read_golden(name).config, "config.json")

    def bounds() -> tuple[int, int]:
        found = read_video_settings(tmp_path, tower, name).grid
        return found.least, found.most

    assert bounds() == ((100_352, 602_112) if name in BLOCKS else (131_072, 786_432))
    for number, (file, before, after) in enumerate(
        [
            ("preprocessor_config.json", "", ""),
            ("video_preprocessor_config.json", "", ""),
            ("processor_config.json", '{"video_processor": ', "}"),
        ]
    ):
        size = f'{{"size": {{"shortest_edge": {5 + number}, "longest_edge": {50 + number}}}}}'
        (tmp_path / file).write_text(before + size + after)
        assert bounds() == (5 + number, 50 + number)


def test_a_limit_for_each_frame_is_read(tmp_path: Path) -> None:
    tower = read_tower(read_golden("qwen3_vl").config, "config.json")
    file = tmp_path / "video_preprocessor_config.json"
    for text, tokens in (
        ('{"cap_pixels_per_frame": true', 768),
        ('{"cap_pixels_per_frame": 0', None),
    ):
        file.write_text(text + "}")
        assert read_video_settings(tmp_path, tower, "qwen3_vl").tokens == tokens
    file.write_text('{"cap_pixels_per_frame": true, "max_video_tokens": 5}')
    assert read_video_settings(tmp_path, tower, "qwen3_vl").tokens == 5


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 7), seconds=st.floats(0.01, 5))
def test_times_grow_with_the_seconds_between_pairs(
    watching: Open, count: int, seconds: float
) -> None:
    shown = clip(film(16, 16, count), seconds)
    pairs = (count + 1) // 2
    assert watching("qwen2_vl").prepare_video(shown)[0].image.times == tuple(range(pairs))
    (segment,) = watching("qwen2_5_vl").prepare_video(shown)  # 4 positions a second
    expected = [4 * 2 * seconds * i for i in range(pairs)]
    assert np.allclose(segment.image.times, np.floor(expected), atol=1)
    stamps = [segment.text for segment in watching("qwen3_vl").prepare_video(shown)]
    last = count - 1
    middles = [(2 * i + min(2 * i + 1, last)) * seconds / 2 for i in range(pairs)]
    told = [re.fullmatch(r"<(\d+\.\d) seconds>", stamp) for stamp in stamps]
    found = [float(match[1]) for match in told if match]
    assert found == pytest.approx(middles, abs=0.0501)  # to a tenth of a second


@pytest.mark.parametrize("name", BLOCKS)
def test_hashes_differ_by_frames_and_by_times(watching: Open, name: str) -> None:
    """A video's keys in the cache hold its times, so those are part of its name."""
    model, frames = watching(name), film(16, 24, 6)
    shown = [clip(frames), clip(frames), clip(frames[::-1]), clip(frames[:5]), clip(frames, 2.0)]
    same, again, *others = [model.prepare_video(one)[0].image.content_hash for one in shown]
    assert same == again
    different = len(others) - (name == "qwen2_vl")  # which counts pairs, whatever their times
    assert len({same, *others}) == 1 + different


@pytest.mark.parametrize("name", STAMPED)
def test_equal_pairs_have_equal_hashes_whatever_their_time(watching: Open, name: str) -> None:
    still = picture(16, 24)
    found = watching(name).prepare_video(clip([still] * 4))
    assert len({segment.image.content_hash for segment in found}) == 1
    assert len({segment.text for segment in found}) == 2
    assert found[0].image.content_hash != watching(name).prepare(still).content_hash


@each_name
def test_a_video_too_large_or_without_frames_is_refused(watching: Open, name: str) -> None:
    model = watching(name)
    with pytest.raises(ImageError, match="no frames"):
        model.prepare_video(clip([]))
    wide = replace(model.video_settings.grid, least=MAX_PIXELS, most=2 * MAX_PIXELS)
    large = QwenVision(
        model.config,
        model.settings,
        replace(model.video_settings, grid=wide),
        model.network,
        model.image_token,
        model.video_token,
    )
    with pytest.raises(ImageError, match=r"3 frames of .* take fewer frames"):
        large.prepare_video(clip(film(16, 16, 3)))
    with pytest.raises(ImageError, match="200 times"):
        model.prepare_video(clip([picture(1, 300)]))
