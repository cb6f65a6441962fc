"""Loading of a Qwen model's vision part, whose weights lie beside the language model's.

Weights are named `model.visual.…` (transformers), `visual.…` (before 4.52) or `vision_tower.…` (MLX
conversions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models import build, safetensors_file
from sgl_mlx.models.vision.model import Placeholder
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig, read_placeholder, read_tower
from sgl_mlx.models.vision.qwen.model import QwenVision
from sgl_mlx.models.vision.qwen.pixels import read_grid_settings
from sgl_mlx.models.vision.qwen.tower import QwenTower
from sgl_mlx.models.vision.qwen.video import read_video_settings

_PREFIXES = ("model.visual.", "visual.", "vision_tower.")
_PATCHES = "patch_embed.proj.weight"
_RENAMED = {
    "merger.ln_q.": "merger.norm.",
    "merger.mlp.0.": "merger.linear_fc1.",
    "merger.mlp.2.": "merger.linear_fc2.",
    ".mlp.fc1.": ".mlp.linear_fc1.",
    ".mlp.fc2.": ".mlp.linear_fc2.",
}
"""Parts of names in Qwen2-VL's and Qwen2.5-VL's checkpoints, and their names here."""


def load_vision(folder: Path, config: Mapping[str, Any]) -> QwenVision | None:
    """Load the vision part of a model folder, without evaluating weights.

    Args:
        config: content of `config.json`.

    Returns:
        The vision part; None if the folder has no weights of it, as some conversions have none.

    Raises:
        UnsupportedModelError, CorruptModelError: for a vision part that cannot be run or read; the
            message names the file and what is wrong in it.
    """
    weights = _read_weights(folder)
    if not weights:
        return None
    tower = read_tower(config, str(folder / "config.json"))
    image, video = read_placeholder(config, "image"), read_placeholder(config, "video")
    _check_fits(tower, (image, video), config, str(folder / "config.json"))
    settings = read_grid_settings(folder, tower, config["model_type"])
    video_settings = read_video_settings(folder, tower, config["model_type"])
    network = QwenTower(tower)
    if _PATCHES in weights and weights[_PATCHES].ndim == 5:
        weights[_PATCHES] = as_matrix(weights[_PATCHES], tower.channels)
    build.quantize_like(network, weights)
    build.check_weights(network, weights, str(folder))
    network.load_weights(list(weights.items()))
    network.eval()
    return QwenVision(tower, settings, video_settings, network, image, video)


def _check_fits(
    tower: QwenTowerConfig, marks: Sequence[Placeholder], config: Mapping[str, Any], source: str
) -> None:
    """Raise `CorruptModelError` unless the language model takes the tower's features and marks."""
    text = config.get("text_config") or config
    if tower.text_width != text["hidden_size"]:
        raise CorruptModelError(
            f"{source}: the vision part gives features of width {tower.text_width}, the language "
            f"model takes {text['hidden_size']}"
        )
    if len(tower.deep) > text["num_hidden_layers"]:
        raise CorruptModelError(
            f"{source}: the vision part gives features for {len(tower.deep)} layers, the language "
            f"model has {text['num_hidden_layers']} layers"
        )
    around = [mark for mark in (marks[0].before, marks[0].after) if mark is not None]
    for name, token in [*((mark.text, mark.id) for mark in marks), *around]:
        if token is not None and not 0 <= token < text["vocab_size"]:
            raise CorruptModelError(
                f"{source}: {name} is token {token}, the vocabulary has {text['vocab_size']}"
            )


def as_matrix(convolution: mx.array, channels: int) -> mx.array:
    """Reshape a convolution over patches `(width, channels, frames, patch, patch)` to a matrix.

    Takes MLX's order `(width, frames, patch, patch, channels)` too. The matrix is
    `(width, frames * patch * patch * channels)`.
    """
    if convolution.shape[-1] != channels or convolution.shape[1] == channels:
        convolution = convolution.transpose(0, 2, 3, 4, 1)
    return convolution.reshape(convolution.shape[0], -1)


def _named(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _read_weights(folder: Path) -> dict[str, mx.array]:
    """Read the vision part's weights, by their names without the prefix."""
    weights: dict[str, mx.array] = {}
    for file in safetensors_file.weight_files(folder):
        try:
            found = mx.load(str(file))
        except (RuntimeError, ValueError) as e:
            raise CorruptModelError(f"{file}: weights cannot be read: {e}") from e
        assert isinstance(found, dict)
        for name, values in found.items():
            prefix = next((p for p in _PREFIXES if name.startswith(p)), None)
            if prefix is not None:
                weights[_named(name.removeprefix(prefix))] = values
    return weights
