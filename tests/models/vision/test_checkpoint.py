"""Folders of every layout give the same model; broken ones say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.models.vision.checkpoint import has_vision, text_config
from tests.models.vision.conftest import Arrays, Write, read_golden
from tests.models.vision.pictures import picture

Rename = Callable[[str], str]


def renamed(name: str, rename: Rename) -> Arrays:
    return {rename(key): values for key, values in read_golden(name).weights.items()}


def as_before(key: str) -> str:
    """Transformers before 4.52."""
    key = key.removeprefix("model.")
    key = key.replace("language_model.", "language_model.model.", 1)
    key = key.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return f"language_model.{key}" if key.startswith("lm_head") else key


def features(loaded: LoadedModel) -> mx.array:
    assert loaded.vision is not None
    return loaded.vision.encode([loaded.vision.prepare(picture(30, 50))])[0]


def logits(loaded: LoadedModel) -> mx.array:
    return loaded.model(mx.array([[1, 5, 9, 20]]))


def same(one: LoadedModel, other: LoadedModel) -> bool:
    return bool(
        mx.array_equal(features(one), features(other))
        and mx.array_equal(logits(one), logits(other))
    )


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision"])
def test_the_older_layout_is_the_same_model(write: Write, name: str) -> None:
    old = write(name, "old", weights=renamed(name, as_before))
    assert same(load(old, dtype="float32"), load(write(name), dtype="float32"))


def test_an_mlx_conversion_with_channels_last_is_the_same_model(write: Write) -> None:
    weights = renamed("llava", as_before)
    key = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    weights[key] = np.ascontiguousarray(weights[key].transpose(0, 2, 3, 1))
    converted = load(write("llava", "mlx", weights=weights), dtype="float32")
    assert same(converted, load(write("llava"), dtype="float32"))


def test_a_quantized_conversion_stays_quantized_or_is_dequantized(write: Write) -> None:
    weights = quantized(renamed("llava", as_before))
    how = {"group_size": 32, "bits": 8}
    config = {**read_golden("llava").config, "quantization": how}
    folder = write("llava", "8bit", weights=weights, config=config)
    native, floats = load(folder, dtype="native"), load(folder, dtype="float32")
    for loaded, packed in ((native, True), (floats, False)):
        assert loaded.vision is not None
        for module in (loaded.model, loaded.vision.network):
            kinds = {values.dtype for _, values in tree_flatten(module.parameters())}
            assert (mx.uint32 in kinds) == packed
    plain = load(write("llava"), dtype="float32")
    assert mx.allclose(features(native), features(floats), atol=1e-3)
    assert mx.abs(features(floats) - features(plain)).max() < 1.0
    assert mx.abs(logits(floats) - logits(plain)).max() < 0.5


def quantized(weights: Arrays) -> Arrays:
    """Every matrix of a linear layer in groups of 32, as mlx-vlm writes them."""
    found: Arrays = {}
    for name, values in weights.items():
        stem, _, kind = name.rpartition(".")
        if values.ndim != 2 or kind != "weight" or values.shape[1] % 32 or "embed" in name:
            found[name] = values
            continue
        parts = mx.quantize(mx.array(values), group_size=32, bits=8)
        for part, array in zip(("weight", "scales", "biases"), parts, strict=True):
            found[f"{stem}.{part}"] = np.array(array)
    return found


def test_weights_that_no_feature_needs_are_not_kept(write: Write) -> None:
    loaded = load(write("llava"))
    assert loaded.vision is not None
    names = [name for name, _ in tree_flatten(loaded.vision.network.parameters())]
    assert any(".layers.1." in name for name in names)
    assert not any(".layers.2." in name or "post_layernorm" in name for name in names)


def test_an_output_layer_that_is_missing_is_the_tied_one(write: Write) -> None:
    weights = {k: v for k, v in read_golden("llava").weights.items() if "lm_head" not in k}
    loaded = load(write("llava", weights=weights), dtype="float32")
    assert loaded.config["tie_word_embeddings"] is True
    hidden = loaded.model.model(mx.array([[1, 5, 9, 20]]))
    assert mx.allclose(logits(loaded), hidden @ loaded.model.model.embed_tokens.weight.T, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_both_parts_are_cast_to_the_type_asked_for(write: Write, dtype: str) -> None:
    loaded = load(write("llava_next"), dtype=dtype)
    assert loaded.vision is not None
    for module in (loaded.model, loaded.vision.network):
        kinds = {values.dtype for _, values in tree_flatten(module.parameters())}
        assert kinds == {getattr(mx, dtype)}
    assert features(loaded).dtype == getattr(mx, dtype)


def test_the_weight_bytes_are_those_of_both_parts(write: Write) -> None:
    loaded = load(write("llava"), dtype="float32")
    assert loaded.vision is not None
    modules = (loaded.model, loaded.vision.network)
    arrays = [values for m in modules for _, values in tree_flatten(m.parameters())]
    assert loaded.weight_bytes == 4 * sum(values.size for values in arrays)


def test_placeholders_are_those_of_the_configuration(write: Write) -> None:
    llava, onevision = load(write("llava")), load(write("llava_onevision", "onevision"))
    assert llava.vision is not None
    assert onevision.vision is not None
    assert (llava.vision.image_token.id, llava.vision.image_token.text) == (62, "<image>")
    assert llava.vision.video_token is None
    assert onevision.vision.video_token is not None
    assert onevision.vision.video_token.id == 63
    assert llava.tokenizer.backend.token_to_id("<image>") == 62


def test_what_the_text_configuration_leaves_out_is_transformers_default() -> None:
    sparse = {"model_type": "mistral", "intermediate_size": 14336, "vocab_size": 32064}
    found = text_config({"model_type": "llava_next", "text_config": sparse}, "config.json")
    assert (found["hidden_size"], found["num_key_value_heads"]) == (4096, 8)
    assert found["vocab_size"] == 32064
    assert found["rope_theta"] == 10000.0
    assert found["tie_word_embeddings"] is False


def test_rope_of_recent_configurations_is_put_into_mlx_lms_words() -> None:
    rope = {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}
    text = {"model_type": "llama", "rope_parameters": rope}
    found = text_config({"model_type": "llava", "text_config": text}, "config.json")
    assert found["rope_theta"] == 7.0
    assert found["rope_scaling"]["factor"] == 2.0


def test_the_language_model_may_be_any_architecture_of_mlx_lm() -> None:
    only_mlx = {"model_type": "nanochat", "hidden_size": 8}
    found = text_config({"model_type": "llava", "text_config": only_mlx}, "config.json")
    assert found["model_type"] == "nanochat"
    default = text_config({"model_type": "llava_onevision"}, "config.json")
    assert default["model_type"] == "qwen2"


@pytest.mark.parametrize("name", ["llava", "llava_onevision"])
def test_the_language_model_runs_as_any_other_of_its_architecture(write: Write, name: str) -> None:
    loaded = load(write(name), dtype="float32")
    adapter = adapter_for(loaded.model)
    assert adapter.ragged
    assert (len(adapter.layers), adapter.vocabulary) == (2, 64)


def test_pixtral_is_left_to_mlx_lm() -> None:
    assert has_vision({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}})
    assert has_vision({"model_type": "llava_next"})
    assert not has_vision({"model_type": "llava", "vision_config": {"model_type": "pixtral"}})
    assert not has_vision({"model_type": "llama"})


@pytest.mark.parametrize(
    ("changes", "error", "fault"),
    [
        ({"vision_config": {"model_type": "dinov2"}}, UnsupportedModelError, "tower 'dinov2'"),
        ({"vision_feature_layer": -9}, CorruptModelError, "-9, the tower has 3 layers"),
        ({"vision_feature_layer": []}, CorruptModelError, "vision_feature_layer is"),
        ({"vision_feature_select_strategy": "cls"}, UnsupportedModelError, "'cls', known are"),
        ({"projector_hidden_act": "swoosh"}, UnsupportedModelError, "activation 'swoosh'"),
        ({"text_config": {"model_type": "lama"}}, UnsupportedModelError, "near it are llama"),
        ({"text_config": {"model_type": "gpt2"}}, CorruptModelError, "no hidden_size"),
        ({"text_config": {"vocab_size": "many"}}, CorruptModelError, "text_config has a wrong"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsupportedModelError, "by awq"),
    ],
)
def test_a_configuration_that_does_not_run_is_refused(
    write: Write, changes: dict[str, Any], error: type, fault: str
) -> None:
    config = {**read_golden("llava").config, **changes}
    with pytest.raises(error, match=fault):
        load(write("llava", config=config))


@pytest.mark.parametrize(
    ("tower", "fault"),
    [
        ({"num_attention_heads": 5}, "no multiple of its 5 heads"),
        ({"patch_size": 0}, "sizes below 1"),
        ({"hidden_size": "wide"}, "a value of the vision part is wrong"),
        ({"intermediate_size": 40}, r"mlp\.fc1\.weight has shape \(48, 32\)"),
        ({"image_size": 35}, "pictures become 28 x 28, the vision tower takes 35 x 35"),
    ],
)
def test_a_tower_that_cannot_be_is_refused(write: Write, tower: dict[str, Any], fault: str) -> None:
    config = read_golden("llava").config
    changed = {**config, "vision_config": {**config["vision_config"], **tower}}
    with pytest.raises(CorruptModelError, match=fault):
        load(write("llava", config=changed))


def test_features_that_make_no_square_are_refused_where_tiles_are_joined(write: Write) -> None:
    config = {**read_golden("llava_next").config, "vision_feature_select_strategy": "full"}
    with pytest.raises(UnsupportedModelError, match=r"needs 16 features of a tile .* leaves 17"):
        load(write("llava_next", config=config))


def test_a_limit_of_tiles_of_another_kind_is_refused(write: Write) -> None:
    config = {**read_golden("llava_onevision").config, "vision_aspect_ratio": "square"}
    with pytest.raises(UnsupportedModelError, match="vision_aspect_ratio is 'square'"):
        load(write("llava_onevision", config=config))


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        ("multi_modal_projector.linear_1.bias", "linear_1.bias is missing"),
        ("vision_tower.pre_layrnorm.weight", "pre_layrnorm.weight is missing"),
        ("language_model.norm.weight", "norm.weight is missing"),
    ],
)
def test_a_missing_weight_is_named(write: Write, gone: str, fault: str) -> None:
    weights = {k: v for k, v in read_golden("llava").weights.items() if not k.endswith(gone)}
    with pytest.raises(CorruptModelError, match=fault):
        load(write("llava", weights=weights))


def test_a_truncated_weight_file_is_refused(write: Write) -> None:
    folder: Path = write("llava")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptModelError, match="truncated"):
        load(folder)
