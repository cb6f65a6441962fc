"""Randomly initialised vision towers, to measure speed without real weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

TOWERS: dict[str, dict[str, Any]] = {
    "clip-l-336": {  # the tower of LLaVA-1.5
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "clip-b-224": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
    "toy": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    },
}
"""Shapes of CLIP towers by name."""

_DEVIATION = 0.02


def write_tower(folder: Path, tower: str, text_width: int) -> None:
    """Write the vision tower and projector of a LLaVA-1.5, with random weights, into `folder`.

    Args:
        tower: one of `TOWERS`.
        text_width: width of the language model that the folder is for.
    """
    shape = {"model_type": "clip_vision_model", **TOWERS[tower]}
    config = {
        "model_type": "llava",
        "vision_config": shape,
        "text_config": {"model_type": "llama", "hidden_size": text_width},
    }
    (folder / "config.json").write_text(json.dumps(config))
    side = shape["image_size"]
    processor = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file(dict(random_weights(tower, text_width)), folder / "model.safetensors")


def random_weights(tower: str, text_width: int) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """Yield the name in transformers and the random values of each weight; the seed is fixed."""
    draw = np.random.default_rng(0)
    for name, size in _weights(TOWERS[tower], text_width):
        yield name, (draw.standard_normal(size, np.float32) * _DEVIATION).astype(np.float16)


def _weights(shape: dict[str, Any], text_width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden, patch = (
        shape[key] for key in ("hidden_size", "intermediate_size", "patch_size")
    )
    root = "vision_tower.vision_model."
    yield root + "embeddings.class_embedding", (width,)
    yield root + "embeddings.patch_embedding.weight", (width, 3, patch, patch)
    positions = (shape["image_size"] // patch) ** 2 + 1
    yield root + "embeddings.position_embedding.weight", (positions, width)
    yield from _affine(root + "pre_layrnorm", width)
    for layer in range(shape["num_hidden_layers"]):
        block = f"{root}encoder.layers.{layer}."
        yield from _affine(block + "layer_norm1", width)
        yield from _affine(block + "layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _affine(f"{block}self_attn.{name}", width, width)
        yield from _affine(block + "mlp.fc1", hidden, width)
        yield from _affine(block + "mlp.fc2", width, hidden)
    yield from _affine("multi_modal_projector.linear_1", text_width, width)
    yield from _affine("multi_modal_projector.linear_2", text_width, text_width)


def _affine(name: str, *size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".weight", size
    yield name + ".bias", size[:1]
