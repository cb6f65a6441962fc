"""Loading of LLaVA folders, whose weights belong to a language model and a vision part.

Weights of the language model are named `language_model.model.…` (transformers before 4.52, and MLX
conversions), or `model.language_model.…` with `lm_head` beside them (later transformers). Names of
the vision tower may or may not contain `vision_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models import build, safetensors_file
from sgl_mlx.models.vision.config import FAMILIES, VisionConfig, read_config
from sgl_mlx.models.vision.pixels import PixelSettings
from sgl_mlx.models.vision.settings import read_settings
from sgl_mlx.models.vision.tiled import TiledVision
from sgl_mlx.models.vision.tower import VisionNetwork

Weights = dict[str, mx.array]

_VISION = ("vision_tower.", "multi_modal_projector.", "image_newline")
_TEXT_DEFAULT = {"llava_onevision": "qwen2"}
_UNUSED = re.compile(r"vision_tower\.(post_layernorm|head|embeddings\.position_ids)\b")
_BLOCK = re.compile(r"vision_tower\.encoder\.layers\.(\d+)\.")
_PATCHES = "vision_tower.embeddings.patch_embedding.weight"
_CHANNELS = 3


def has_vision(config: Mapping[str, Any]) -> bool:
    """Return True if the model has a vision part that this package runs; False for pixtral."""
    tower = config.get("vision_config") or {}
    return config["model_type"] in FAMILIES and tower.get("model_type") != "pixtral"


def load_folder(
    folder: Path, config: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any], TiledVision]:
    """Load language model, its configuration, and vision part; weights are not evaluated.

    Raises:
        UnsupportedModelError, CorruptModelError: for a model that cannot be run or read; the
            message names the file and what is wrong in it.
    """
    source = str(folder / "config.json")
    text = text_config(config, source)
    build.model_classes(text)
    if "hidden_size" not in text:
        raise CorruptModelError(f"{source}: text_config has no hidden_size")
    vision = read_config(config, text["hidden_size"], source)
    settings = read_settings(folder, vision)
    _check_quantization(config, source)
    text_weights, vision_weights = split(_read_weights(folder))
    text["tie_word_embeddings"] |= "lm_head.weight" not in text_weights
    model = build.build(text, text_weights, str(folder))
    return model, text, assemble(vision, settings, vision_weights, str(folder))


def load_vision(
    folder: Path, config: Mapping[str, Any], text_width: int, image_token: int | None
) -> TiledVision:
    """Load only the vision part, for a language model that is not in the folder.

    Args:
        text_width: width of that language model.
        image_token: the id of `<image>` in that model's vocabulary; None if it has none.

    Raises:
        UnsupportedModelError, CorruptModelError: as `load_folder`, and if the vision part is for a
            language model of another width.
    """
    source = str(folder / "config.json")
    given = text_config(config, source).get("hidden_size")
    check_width(folder, given, text_width)
    found = read_config(config, text_width, source)
    found = replace(found, image_token=image_token, video_token=None)
    _check_quantization(config, source)
    _, weights = split(_read_weights(folder))
    return assemble(found, read_settings(folder, found), weights, str(folder))


def check_width(path: Path, given: int | None, text_width: int) -> None:
    """Raise `CorruptModelError` unless `given`, the vision part's width, equals `text_width`."""
    if given != text_width:
        raise CorruptModelError(
            f"{path} gives features of width {given}, the language model takes {text_width}: it "
            "belongs to another model"
        )


def assemble(
    config: VisionConfig, settings: PixelSettings, weights: Weights, source: str
) -> TiledVision:
    """Build the vision part from weights with transformers' names; errors name `source`.

    Raises:
        CorruptModelError: for weights that do not match the configuration.
    """
    network = VisionNetwork(config)
    weights = sanitize(weights, config)
    build.quantize_like(network, weights)
    build.check_weights(network, weights, source)
    network.load_weights(list(weights.items()))
    network.eval()
    return TiledVision(config, settings, network)


def text_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return `text_config` with transformers' defaults filled in and mlx-lm's names.

    Raises:
        CorruptModelError: when transformers rejects a value.
    """
    given = dict(config.get("text_config") or {})
    given.setdefault("model_type", _TEXT_DEFAULT.get(config["model_type"], "llama"))
    filled = {**_filled(given, source), **given}
    rope = filled.get("rope_parameters") or {}
    if "rope_theta" in rope:
        filled.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            filled.setdefault("rope_scaling", rope)
    tied = [filled.get("tie_word_embeddings"), config.get("tie_word_embeddings")]
    filled["tie_word_embeddings"] = any(tied)
    return filled


def _filled(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    values = {key: value for key, value in given.items() if key != "model_type"}
    try:
        filled = AutoConfig.for_model(given["model_type"], **values).to_dict()
    except ValueError:  # an architecture that only mlx-lm knows; it says what is missing
        return {}
    except (TypeError, StrictDataclassError) as e:
        raise CorruptModelError(f"{source}: text_config has a wrong value: {e}") from e
    return {key: value for key, value in filled.items() if value is not None}


def is_vision(name: str) -> bool:
    """Return True if `name` is a weight of the vision part in a LLaVA folder."""
    return name.removeprefix("model.").startswith(_VISION)


def split(weights: Mapping[str, mx.array]) -> tuple[Weights, Weights]:
    """Split a LLaVA folder's weights: first the language model's, then the vision part's.

    The language model's weights get mlx-lm's names, the vision part's the names in `VisionNetwork`.
    """
    text: Weights = {}
    vision: Weights = {}
    for name, values in weights.items():
        bare = name.removeprefix("model.")
        if is_vision(name):
            vision[bare.replace("vision_tower.vision_model.", "vision_tower.", 1)] = values
        elif bare.startswith("language_model."):
            inner = bare.removeprefix("language_model.")
            text[inner if bare == name else f"model.{inner}"] = values
        else:
            text[name] = values
    return text, vision


def sanitize(weights: Mapping[str, mx.array], config: VisionConfig) -> Weights:
    """Drop unused weights, and reshape the patch convolution to a matrix (`_as_matrix`)."""
    kept: Weights = {}
    for name, values in weights.items():
        block = _BLOCK.match(name)
        if _UNUSED.match(name) or (block and int(block[1]) >= config.tower.layers):
            continue
        if name == "image_newline" and config.family == "llava":
            continue
        kept[name] = _as_matrix(values) if name == _PATCHES and values.ndim == 4 else values
    return kept


def _as_matrix(convolution: mx.array) -> mx.array:
    """Reshape a convolution `(width, 3, patch, patch)` to `(width, patch * patch * 3)`.

    Takes MLX's order `(width, patch, patch, 3)` too.
    """
    if convolution.shape[-1] != _CHANNELS or convolution.shape[1] == _CHANNELS:
        convolution = convolution.transpose(0, 2, 3, 1)
    return convolution.reshape(convolution.shape[0], -1)


def _check_quantization(config: Mapping[str, Any], source: str) -> None:
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        raise UnsupportedModelError(
            f"{source}: {config['model_type']} quantized by {method} is not supported; take the "
            "unquantized weights or an MLX conversion"
        )


def _read_weights(folder: Path) -> Weights:
    weights: Weights = {}
    try:
        for file in safetensors_file.weight_files(folder):
            weights |= cast(Weights, mx.load(str(file)))
    except (RuntimeError, ValueError) as e:
        raise CorruptModelError(f"{folder}: weights cannot be read: {e}") from e
    return weights
