"""The vision part as others use it: hashes, batches, threads, refusals, and a real size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from sgl_mlx.errors import ImageError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.models.vision.config import read_config
from sgl_mlx.models.vision.settings import default_values, parse_settings
from sgl_mlx.models.vision.tiled import TiledVision
from sgl_mlx.models.vision.tower import VisionNetwork
from tests.models.vision.clips import clip
from tests.models.vision.pictures import picture
from tests.models.vision.test_image import saved

Toys = Callable[[str], LoadedModel]


def vision(toys: Toys, name: str) -> TiledVision:
    found = toys(name).vision
    assert found is not None
    return found


def test_the_same_pixels_have_the_same_hash_whatever_they_come_from(toys: Toys) -> None:
    model = vision(toys, "llava")
    image = picture(30, 40)
    hashes = {model.prepare(source).content_hash for source in (image, saved(image, "BMP"))}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 32


def test_one_pixel_the_shape_or_the_settings_change_the_hash(toys: Toys) -> None:
    model = vision(toys, "llava_onevision")
    image, touched = picture(30, 40), picture(30, 40)
    touched.putpixel((39, 29), (1, 2, 3))
    reshaped = Image.fromarray(np.asarray(image).reshape(40, 30, 3))
    other = TiledVision(model.config, replace(model.settings, resample=2), model.network)
    found = [
        model.prepare(image),
        model.prepare(touched),
        model.prepare(reshaped),
        model.prepare(image, alone=False),
        model.prepare_video(clip([image]))[0].image,
        model.prepare_video(clip([image, image]))[0].image,
        other.prepare(image),
    ]
    assert len({prepared.content_hash for prepared in found}) == len(found)


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision"])
def test_a_batch_gives_each_picture_what_it_gets_alone(
    toys: Toys, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vision(toys, name)
    images = [model.prepare(picture(*size)) for size in [(30, 90), (28, 28), (90, 31), (200, 40)]]
    alone = [model.encode([image])[0] for image in images]
    for limit in (1, 1 << 20):
        monkeypatch.setattr("sgl_mlx.models.vision.tiled._BATCH_BYTES", limit)
        for together, expected in zip(model.encode(images), alone, strict=True):
            assert mx.allclose(together, expected, atol=1e-4)


def test_batches_are_bounded(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vision(toys, "llava_onevision")
    monkeypatch.setattr(TiledVision, "batch_tiles", 3)
    sizes: list[int] = []
    original = VisionNetwork.__call__

    def counted(self: VisionNetwork, pixels: mx.array) -> mx.array:
        sizes.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(VisionNetwork, "__call__", counted)
    images = [model.prepare(picture(124, 124)), model.prepare(picture(40, 40), alone=False)]
    assert [len(image.pixels) for image in images] == [17, 1]
    model.encode(images)
    assert sizes == [3] * 6


def test_nothing_is_encoded_for_no_pictures(toys: Toys) -> None:
    assert vision(toys, "llava").encode([]) == []


def test_pictures_can_be_prepared_on_many_threads(toys: Toys) -> None:
    model = vision(toys, "llava_next")
    sizes = [(20 + 3 * n, 90 - 2 * n) for n in range(24)]
    expected = [model.prepare(picture(*size)) for size in sizes]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda size: model.prepare(picture(*size)), sizes))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.content_hash == theirs.content_hash
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_several_pictures_of_onevision_take_one_tile_each(toys: Toys) -> None:
    model = vision(toys, "llava_onevision")
    assert len(model.prepare(picture(62, 93)).pixels) == 7
    together = model.prepare(picture(62, 93), alone=False)
    assert (len(together.pixels), together.tokens) == (1, 26)


def test_video_is_refused_by_families_without_and_without_frames(toys: Toys) -> None:
    with pytest.raises(ImageError, match="llava takes pictures, no video"):
        vision(toys, "llava").prepare_video(clip([picture(9, 9)]))
    with pytest.raises(ImageError, match="has no frames"):
        vision(toys, "llava_onevision").prepare_video(clip([]))


def test_a_picture_that_cannot_be_read_leaves_the_model_as_it_was(toys: Toys) -> None:
    model = vision(toys, "llava")
    with pytest.raises(ImageError):
        model.prepare(b"no picture")
    assert model.prepare(picture(20, 20)).tokens == 16


def real_size(family: str, text_width: int) -> TiledVision:
    config = read_config({"model_type": family}, text_width, "config.json")
    settings = parse_settings(default_values(config), config, "config.json")
    return TiledVision(config, settings, VisionNetwork(config))


@pytest.mark.parametrize(
    ("family", "tokens", "parameters"),
    [("llava", 576, 291), ("llava_next", 2928, 291), ("llava_onevision", 7371, 398)],
)
def test_a_real_size_is_built_and_counts_tokens(family: str, tokens: int, parameters: int) -> None:
    """24² patches; 24² + 48 x 49; 27² + 81 x 82. Weights stay unevaluated."""
    model = real_size(family, 576)
    counted = sum(values.size for _, values in tree_flatten(model.network.parameters()))
    assert model.prepare(Image.new("RGB", (1000, 1000))).tokens == tokens
    assert counted // 1_000_000 == parameters
    assert 1 <= model.batch_tiles <= 16
