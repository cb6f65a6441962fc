"""A GGUF language model with the vision part of a LLaVA folder, or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from sgl_mlx.errors import CorruptModelError, MemoryLimitError, UnsupportedModelError
from sgl_mlx.models.loader import LoadedModel, load
from tests.models.vision.conftest import Arrays, read_golden, write_golden
from tests.models.vision.pictures import picture


def vision_only(weights: Arrays) -> Arrays:
    return {name: v for name, v in weights.items() if "language" not in name and "head" not in name}


@pytest.fixture
def language_model(write_toy: Callable[..., tuple[Path, Path]], toy_class: Any) -> Path:
    """As wide as the goldens' projectors."""
    config = {"hidden_size": 32, "head_dim": 8}
    return write_toy(toy_class("llama", "llama", config), Type.F32)[0]


@pytest.mark.parametrize("name", ["llava", "llava_siglip", "llava_next", "llava_onevision"])
@pytest.mark.parametrize("whole", [False, True])
def test_features_are_those_of_the_whole_folder(
    toys: Callable[[str], LoadedModel],
    language_model: Path,
    tmp_path: Path,
    name: str,
    whole: bool,
) -> None:
    golden = read_golden(name)
    weights = golden.weights if whole else vision_only(golden.weights)
    folder = write_golden(tmp_path / "part", golden, weights)
    found, expected = load(language_model, mmproj=folder).vision, toys(name).vision
    assert found is not None
    assert expected is not None
    assert found.image_token.id is None
    image = picture(30, 40)
    ours, theirs = found.prepare(image), expected.prepare(image)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert mx.allclose(found.encode([ours])[0], expected.encode([theirs])[0], atol=1e-5)


def test_it_belongs_to_the_model_it_was_loaded_with(language_model: Path, tmp_path: Path) -> None:
    golden = read_golden("llava")
    folder = write_golden(tmp_path / "part", golden, vision_only(golden.weights))
    plain, loaded = load(language_model), load(language_model, mmproj=str(folder))
    assert loaded.fingerprint != plain.fingerprint
    assert loaded.weight_bytes > plain.weight_bytes
    room = int(plain.weight_bytes * 1.3)
    load(language_model, dtype="float32", available=room)
    with pytest.raises(MemoryLimitError):
        load(language_model, dtype="float32", available=room, mmproj=folder)


def test_a_language_model_in_the_folder_takes_no_memory(
    language_model: Path, tmp_path: Path
) -> None:
    golden = read_golden("llava")
    part = write_golden(tmp_path / "part", golden, vision_only(golden.weights))
    whole = write_golden(tmp_path / "whole", golden)
    small, large = (load(language_model, mmproj=folder) for folder in (part, whole))
    assert small.weight_bytes == large.weight_bytes
    room = int(small.weight_bytes * 1.3)
    load(language_model, dtype="float32", available=room, mmproj=whole)


def test_another_models_vision_part_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    golden = read_golden("llava")
    part = write_golden(tmp_path / "part", golden, vision_only(golden.weights))
    with pytest.raises(CorruptModelError, match="width 32, the language model takes 64"):
        load(gguf_path, mmproj=part)


def test_what_is_no_vision_part_is_refused(
    language_model: Path, folder: Path, tmp_path: Path
) -> None:
    golden = read_golden("llava")
    with pytest.raises(UnsupportedModelError, match="'llama', which is no LLaVA"):
        load(language_model, mmproj=folder)
    weights = vision_only(golden.weights)
    weights.pop(next(name for name in weights if "layers.0.self_attn.q_proj.weight" in name))
    broken = write_golden(tmp_path / "broken", golden, weights)
    with pytest.raises(CorruptModelError, match=r"q_proj.weight is missing"):
        load(language_model, mmproj=broken)
