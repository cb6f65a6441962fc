"""Stage by stage, the LLaVA families compute what transformers computes (`make_goldens.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.models.vision.model import PreparedImage
from sgl_mlx.models.vision.tiled import TiledVision
from tests.models.vision.clips import clip
from tests.models.vision.conftest import Arrays, case_names, read_golden
from tests.models.vision.pictures import pictures

Toys = Callable[[str], LoadedModel]

cases = pytest.mark.parametrize(("name", "case"), case_names())


def vision(toys: Toys, name: str) -> TiledVision:
    found = toys(name).vision
    assert found is not None
    return found


def prepared(model: TiledVision, case: str) -> list[PreparedImage]:
    if case == "video":
        return [model.prepare_video(clip(pictures(case)))[0].image]
    images = pictures(case)
    return [model.prepare(image, alone=len(images) == 1) for image in images]


def stacked(images: list[PreparedImage]) -> NDArray[np.float32]:
    return np.concatenate([image.pixels for image in images])


def golden(name: str, case: str) -> Arrays:
    return read_golden(name).cases[case]


def furthest(found: mx.array, expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(np.array(found) - expected).max())


def near(found: mx.array, expected: NDArray[np.float32]) -> bool:
    """To a hundred-thousandth of the largest value, some 20 here."""
    return furthest(found, expected) <= 1e-5 * float(np.abs(expected).max())


@cases
def test_pixels_are_equal_as_integers(toys: Toys, name: str, case: str) -> None:
    model = vision(toys, name)
    raw = replace(model.settings, rescale=None)
    whole = TiledVision(model.config, replace(raw, std=(1.0,) * 3), model.network)
    shifted = stacked(prepared(whole, case)) + np.array(raw.mean, np.float32)
    assert np.array_equal(np.rint(shifted).astype(np.uint8), golden(name, case)["integers"])


@cases
def test_pixels_are_equal_once_normalised(toys: Toys, name: str, case: str) -> None:
    found = stacked(prepared(vision(toys, name), case))
    assert np.array_equal(found, golden(name, case)["pixels"])


@cases
def test_features_of_the_tower_are_equal(toys: Toys, name: str, case: str) -> None:
    model = vision(toys, name)
    found = model.network.select(mx.array(stacked(prepared(model, case))))
    assert near(found, golden(name, case)["selected"])


@cases
def test_projected_features_are_equal(toys: Toys, name: str, case: str) -> None:
    model = vision(toys, name)
    found = model.network(mx.array(stacked(prepared(model, case))))
    assert near(found, golden(name, case)["projected"])


@cases
def test_what_the_language_model_is_fed_is_equal(toys: Toys, name: str, case: str) -> None:
    model = vision(toys, name)
    images = prepared(model, case)
    features = model.encode(images)
    assert [len(f) for f in features] == [image.tokens for image in images]
    assert near(mx.concatenate(features), golden(name, case)["packed"])


@cases
def test_logits_are_equal(toys: Toys, name: str, case: str) -> None:
    expected, loaded, model = golden(name, case), toys(name), vision(toys, name)
    placeholder = model.video_token if case == "video" else model.image_token
    assert placeholder is not None
    tokens = expected["tokens"]
    embeddings = loaded.model.model.embed_tokens(mx.array(tokens))
    rows = mx.array(np.flatnonzero(tokens == placeholder.id))
    embeddings[rows] = mx.concatenate(model.encode(prepared(model, case)))
    logits = loaded.model(mx.array(tokens)[None], input_embeddings=embeddings[None])[0]
    assert furthest(logits, expected["logits"]) < 1e-4
