"""Vision parts of Qwen's models load from every layout of their weights, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import load
from sgl_mlx.models.vision.qwen.model import QwenVision
from tests.models.vision.conftest import Arrays, Write, read_golden
from tests.models.vision.pictures import pictures

GOLDEN = read_golden("qwen3_vl")
PATCHES = "patch_embed.proj.weight"


def renamed(change: Callable[[str], str]) -> Arrays:
    return {change(name): values for name, values in GOLDEN.weights.items()}


def older() -> Arrays:
    """Names of transformers before 4.52."""
    return renamed(
        lambda name: name.replace("model.visual.", "visual.").replace(
            "model.language_model", "model"
        )
    )


def mlx() -> Arrays:
    """Names of MLX conversions, whose convolution has its channels last."""
    weights = renamed(
        lambda name: (
            name.replace("model.visual.", "vision_tower.")
            .replace("model.language_model", "language_model.model")
            .replace("lm_head", "language_model.lm_head")
        )
    )
    name = f"vision_tower.{PATCHES}"
    weights[name] = np.ascontiguousarray(weights[name].transpose(0, 2, 3, 4, 1))
    return weights


def quantized() -> Arrays:
    """Names of MLX conversions, with the tower's feed-forward layers in 8 bits."""
    weights = mlx()
    for name in [n for n in weights if n.startswith("vision_tower.") and "linear_fc1.weight" in n]:
        parts = mx.quantize(mx.array(weights[name]), group_size=32, bits=8)
        stem = name.removesuffix(".weight")
        for kind, values in zip(("weight", "scales", "biases"), parts, strict=True):
            weights[f"{stem}.{kind}"] = np.array(values)
    return weights


def features(folder: Path) -> mx.array:
    vision = load(folder, dtype="float32").vision
    assert isinstance(vision, QwenVision)
    return vision.encode([vision.prepare(pictures("40x60")[0])])[0]


@pytest.mark.parametrize(("layout", "within"), [(older, 1e-5), (mlx, 1e-5), (quantized, 5e-2)])
def test_every_layout_gives_the_same_features(
    write: Write, layout: Callable[[], Arrays], within: float
) -> None:
    expected = GOLDEN.cases["40x60"]["packed"]
    found = features(write("qwen3_vl", weights=layout()))
    assert float(np.abs(np.array(found) - expected).max()) <= within * np.abs(expected).max()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_older_checkpoints_say_all_in_one_level(write: Write, name: str) -> None:
    """Qwen2.5-VL as published: no `text_config`, and the names of transformers before 4.52."""
    toy = read_golden(name)
    config = toy.config | toy.config["text_config"] | {"model_type": name}
    del config["text_config"]
    weights = {
        key.replace("model.visual", "visual").replace("model.language_model", "model"): values
        for key, values in toy.weights.items()
    }
    folder = write(name, weights=weights)
    (folder / "config.json").write_text(json.dumps(config))
    expected = toy.cases["40x60"]["packed"]
    assert float(np.abs(np.array(features(folder)) - expected).max()) <= 1e-4


def test_weights_may_be_of_half_precision(write: Write) -> None:
    folder = write("qwen3_vl")
    vision = load(folder, dtype="bfloat16").vision
    assert vision is not None
    (found,) = vision.encode([vision.prepare(pictures("40x60")[0])])
    assert found.dtype == mx.bfloat16
    expected = GOLDEN.cases["40x60"]["packed"]
    assert mx.abs(found - mx.array(expected)).mean().item() <= 2e-2 * np.abs(expected).max()


def test_a_conversion_without_the_vision_part_is_loaded_as_text(write: Write) -> None:
    text = {name: v for name, v in GOLDEN.weights.items() if "visual" not in name}
    loaded = load(write("qwen3_vl", weights=text))
    assert loaded.vision is None
    assert adapter_for(loaded.model).ragged


def changed(**changes: Any) -> dict[str, Any]:
    return GOLDEN.config | changes


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a width that the language model does not take": (
        {"config": changed(vision_config=GOLDEN.config["vision_config"] | {"out_hidden_size": 48})},
        "width 48, the language model takes 32",
    ),
    "a weight that is missing": (
        {"weights": renamed(lambda name: name.replace("pos_embed", "position"))},
        r"pos_embed\.weight is missing",
    ),
    "sections that do not sum to the frequencies": (
        {
            "config": changed(
                text_config=GOLDEN.config["text_config"]
                | {"rope_parameters": {"rope_theta": 1000.0, "mrope_section": [3, 3, 3]}}
            )
        },
        "must sum to 8",
    ),
    "a mark that the vocabulary lacks": (
        {"config": changed(vision_end_token_id=64)},
        "vision_end.* is token 64, the vocabulary has 64",
    ),
    "a vision part that is a list": (
        {"config": changed(vision_config=[1])},
        "vision_config is no object",
    ),
    "more layers of features than the language model has": (
        {
            "config": changed(
                vision_config=GOLDEN.config["vision_config"]
                | {"deepstack_visual_indexes": [0, 1, 2, 0, 1]}
            )
        },
        "language model has 4 layers",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(write: Write, fault: str) -> None:
    given, told = FAULTS[fault]
    with pytest.raises(CorruptModelError, match=told):
        load(write("qwen3_vl", **given))


def test_rotary_positions_of_another_kind_take_no_pictures(write: Write) -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    rope = GOLDEN.config["text_config"]["rope_parameters"] | yarn
    text = GOLDEN.config["text_config"] | {"rope_parameters": rope}
    loaded = load(write("qwen3_vl", config=changed(text_config=text)))
    assert loaded.vision is None
