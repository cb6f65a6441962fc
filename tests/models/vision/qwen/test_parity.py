"""Stage by stage, Qwen's models compute what transformers computes (`make_goldens.py`)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from sgl_mlx.models.vision.model import PreparedImage
from sgl_mlx.models.vision.qwen.model import QwenVision
from tests.models.vision.conftest import Arrays, read_golden
from tests.models.vision.pictures import pictures
from tests.models.vision.qwen.conftest import Toys, vision

NAMES = ["qwen3_5", "qwen3_vl", "qwen2_5_vl", "qwen2_vl"]
CASES = ["40x60", "60x40", "16x16", "13x17", "20x100", "several"]
each_case = pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in NAMES for case in CASES]
)


def prepared(model: QwenVision, case: str) -> list[PreparedImage]:
    return [model.prepare(image) for image in pictures(case)]


def golden(name: str, case: str) -> Arrays:
    return read_golden(name).cases[case]


def as_patches(image: PreparedImage, patch: int, merge: int) -> NDArray[np.float32]:
    """Pixels as transformers orders them: by token, then by channel, frame, row and column."""
    pixels = image.pixels[0, 0]
    rows, columns = (edge // patch // merge for edge in pixels.shape[:2])
    cut = pixels.reshape(rows, merge, patch, columns, merge, patch, 3)
    by_token = cut.transpose(0, 3, 1, 4, 6, 2, 5)
    twice = np.repeat(by_token[:, :, :, :, :, None], 2, axis=5)
    return twice.reshape(rows * columns * merge**2, -1)


def near(found: mx.array, expected: NDArray[np.float32], within: float = 1e-5) -> bool:
    """To a hundred-thousandth of the largest value."""
    assert found.shape == expected.shape
    most = within * float(np.abs(expected).max())
    return float(np.abs(np.array(found) - expected).max()) <= most


@each_case
def test_pixels_are_equal(toys: Toys, name: str, case: str) -> None:
    images = prepared(vision(toys, name), case)
    found = np.concatenate([as_patches(image, 4, 2) for image in images])
    expected = golden(name, case)
    assert np.array_equal(found, expected["pixels"])
    assert [image.grid for image in images] == [(h // 2, w // 2) for h, w in expected["grid"]]


@each_case
def test_features_are_equal(toys: Toys, name: str, case: str) -> None:
    model = vision(toys, name)
    images = prepared(model, case)
    features = model.encode(images)
    assert [len(x) for x in features] == [image.tokens for image in images]
    assert near(mx.concatenate(features), golden(name, case)["packed"])


def test_pictures_of_one_size_are_encoded_together_as_alone(toys: Toys) -> None:
    model = vision(toys, "qwen3_vl")
    images = prepared(model, "40x60") + prepared(model, "several") + prepared(model, "16x16")
    together = model.encode(images)
    for image, found in zip(images, together, strict=True):
        assert near(found, np.array(model.encode([image])[0]))
