"""Folders of models with recurrent layers: they load, and lies in their files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models import loader
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import load
from tests.models.conftest import random_weights, write_folder
from tests.models.toy import toy_config

CONFIG = toy_config("nemotron_h") | {"tie_word_embeddings": False, "vocab_size": 288}
MIXER = "backbone.layers.0.mixer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "toy", CONFIG, random_weights(CONFIG))


def test_a_hybrid_is_loaded_with_its_states(folder: Path) -> None:
    adapter = adapter_for(load(folder, dtype="bfloat16").model)
    assert adapter.ragged
    assert [state.dtype for state in adapter.states] == [mx.bfloat16, mx.float32] * 4


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "attention where the file has recurrent layers": (
        {"hybrid_override_pattern": list("*-M*M*ME")},
        rf"{MIXER}\.(A_log|q_proj)",
    ),
    "recurrent layers where the file has attention": (
        {"hybrid_override_pattern": list("M-MMM*ME")},
        r"layers\.3\.mixer",
    ),
    "a wider state": ({"ssm_state_size": 16}, r"\(96, 4, 1\).*\(64, 4, 1\)"),
    "more heads": ({"mamba_num_heads": 8}, r"\(96, 4, 1\).*\(64, 4, 1\)"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_configuration_that_lies_about_recurrent_layers_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    changes, numbers = LIES[lie]
    folder = write_folder(tmp_path / "toy", CONFIG | changes, random_weights(CONFIG))
    monkeypatch.setattr(loader.mx, "eval", None)
    with pytest.raises(CorruptModelError, match=numbers):
        load(folder)


@pytest.mark.parametrize("name", ["A_log", "conv1d.weight", "dt_bias", "in_proj.weight"])
def test_missing_weights_of_a_recurrent_layer_are_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    weights = random_weights(CONFIG)
    del weights[f"{MIXER}.{name}"]
    folder = write_folder(tmp_path / "toy", CONFIG, weights)
    monkeypatch.setattr(loader.mx, "eval", None)
    with pytest.raises(CorruptModelError, match=rf"{MIXER}\.{name}"):
        load(folder)


def test_layers_of_an_unknown_type_are_refused(tmp_path: Path) -> None:
    config = CONFIG | {"hybrid_override_pattern": list("X-M*M*ME")}
    folder = write_folder(tmp_path / "toy", config, random_weights(CONFIG))
    with pytest.raises((CorruptModelError, UnsupportedModelError)):
        load(folder)


def test_the_text_of_a_model_whose_vision_part_nobody_here_runs_is_loaded(tmp_path: Path) -> None:
    config = toy_config("lfm2-vl") | {"tie_word_embeddings": False}
    weights = random_weights(config) | {"vision_tower.patch_embed.weight": np.ones(3, np.float32)}
    config |= {"vision_config": {"model_type": "siglip2_vision_model"}, "image_token_id": 7}
    loaded = load(write_folder(tmp_path / "toy", config, weights))
    assert loaded.vision is None
    assert adapter_for(loaded.model).states
