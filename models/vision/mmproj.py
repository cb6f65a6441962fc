"""Vision part of a LLaVA in a separate GGUF file ("mmproj"), written by llama.cpp's converters.

Feature layer, activation and padding are chosen as in llama.cpp, so that both give the same
features. The output of the second to last block is used unless the file names other layers.
Pictures are padded to a square.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.gguf.weights import native_float
from sgl_mlx.models.vision.checkpoint import Weights, assemble, check_width
from sgl_mlx.models.vision.config import (
    TowerConfig,
    VisionConfig,
    check_square,
    check_tower,
    feature_layers,
)
from sgl_mlx.models.vision.pixels import PixelSettings
from sgl_mlx.models.vision.settings import check_tiles, default_values, parse_settings
from sgl_mlx.models.vision.tiled import TiledVision

_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_OTHER = {
    "v.class_embd": "vision_tower.embeddings.class_embedding",
    "v.patch_embd": "vision_tower.embeddings.patch_embedding",
    "v.position_embd": "vision_tower.embeddings.position_embedding",
    "v.pre_ln": "vision_tower.pre_layrnorm",
    "v.post_ln": "vision_tower.post_layernorm",
    "mm.0": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
    "model.image_newline": "image_newline",
}
_SWAPPED = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}


def load_mmproj(
    file: GGUFFile, text_width: int, image_token: int | None, dtype: mx.Dtype | None
) -> TiledVision:
    """Load the vision part in `file`, without evaluating weights.

    Args:
        text_width: width of the language model.
        image_token: the id of `<image>` in the language model's vocabulary; None if it has none.
        dtype: type of all weights; None takes the type of the file's matrices, or float16 if they
            are quantized or of several types.

    Raises:
        UnsupportedModelError: for another projector or tower than LLaVA's.
        CorruptModelError: when something is missing, or the vision part is for a language model of
            another width.
    """
    config = _read_config(file, image_token)
    check_width(file.path, config.text_width, text_width)
    kind = dtype or native_float(file)
    swapped = _is_swapped(file, config.tower)
    weights: Weights = {
        _target(name, swapped, str(file.path)): mx.array(file.floats(name)).astype(kind)
        for name in file.tensors
    }
    return assemble(config, _read_settings(file, config), weights, str(file.path))


def file_name(name: str) -> str:
    """Translate a parameter's name from transformers' to llama.cpp's; the inverse of `_target`."""
    bare = name.replace("vision_tower.vision_model.", "vision_tower.")
    others = {ours: theirs for theirs, ours in _OTHER.items()}
    block = re.fullmatch(r"vision_tower\.encoder\.layers\.(\d+)\.([\w.]+)\.(weight|bias)", bare)
    if block:
        parts = {ours: theirs for theirs, ours in _BLOCK.items()}
        return f"v.blk.{block[1]}.{parts[block[2]]}.{block[3]}"
    if bare in others:
        return others[bare]
    stem, _, kind = bare.rpartition(".")
    return f"{others[stem]}.{kind}"


def _read_config(file: GGUFFile, image_token: int | None) -> VisionConfig:
    source = str(file.path)
    _check_kind(file, source)
    layers = _need(file, "block_count")
    chosen = file.metadata.get("clip.vision.feature_layer") or [layers - 1]
    indices = feature_layers(chosen, layers, source)
    has_class = "v.class_embd" in file.tensors
    tower = TowerConfig(
        width=_need(file, "embedding_length"),
        hidden=_need(file, "feed_forward_length"),
        layers=max(indices),
        heads=_need(file, "attention.head_count"),
        image_size=_need(file, "image_size"),
        patch_size=_need(file, "patch_size"),
        activation=_activation(file.metadata),
        eps=_need(file, "attention.layer_norm_epsilon"),
        class_token=has_class,
        feature_layers=indices,
    )
    check_tower(tower, source)
    unpads = str(file.metadata.get("clip.vision.mm_patch_merge_type", "")).startswith("spatial")
    config = VisionConfig(
        family="llava_next" if unpads else "llava",
        tower=tower,
        drop_first=has_class,
        text_width=_rows(file, "mm.2.weight"),
        bias="mm.2.bias" in file.tensors,
        image_token=image_token,
    )
    check_square(config, source)
    return config


def _check_kind(file: GGUFFile, source: str) -> None:
    if file.metadata.get("general.architecture") != "clip":
        raise UnsupportedModelError(
            f"{source} is no mmproj file: its architecture is "
            f"{file.metadata.get('general.architecture')!r}, not 'clip'"
        )
    projector = file.metadata.get("clip.projector_type", "mlp")
    if projector != "mlp" or not file.metadata.get("clip.has_vision_encoder", True):
        raise UnsupportedModelError(
            f"{source}: projector {projector!r} is not supported; LLaVA's is 'mlp', after a "
            "vision encoder"
        )


def _read_settings(file: GGUFFile, config: VisionConfig) -> PixelSettings:
    given = {**default_values(config), "do_pad": True}
    for key in ("image_mean", "image_std"):
        given[key] = file.metadata.get(f"clip.vision.{key}")
    flat = file.metadata.get("clip.vision.image_grid_pinpoints")
    if flat:  # width and height in turn
        given["image_grid_pinpoints"] = list(zip(flat[1::2], flat[::2], strict=False))
    settings = parse_settings(given, config, str(file.path))
    check_tiles(settings, config, str(file.path))
    return settings


def _need(file: GGUFFile, key: str) -> Any:
    value = file.metadata.get(f"clip.vision.{key}")
    if not value:
        fault = "missing" if value is None else value
        raise CorruptModelError(f"{file.path}: clip.vision.{key} is {fault}")
    return value


def _rows(file: GGUFFile, tensor: str) -> int:
    if tensor not in file.tensors:
        raise CorruptModelError(f"{file.path} lacks the tensor {tensor}")
    return file.tensors[tensor].shape[0]


def _activation(metadata: Mapping[str, Any]) -> str:
    if metadata.get("clip.use_silu"):
        return "silu"
    return "gelu_pytorch_tanh" if metadata.get("clip.use_gelu") else "quick_gelu"


def _is_swapped(file: GGUFFile, tower: TowerConfig) -> bool:
    """Return True if `ffn_up` and `ffn_down` are swapped, as older converters wrote them."""
    down = file.tensors.get("v.blk.0.ffn_down.weight")
    return down is not None and down.shape[-1] == tower.width


def _target(name: str, swapped: bool, source: str) -> str:
    """Translate a tensor's name from llama.cpp's to transformers'.

    For example `v.blk.3.ln1.bias` → `….layers.3.layer_norm1.bias`.

    Raises:
        UnsupportedModelError: for a tensor that LLaVA does not have; errors name `source`.
    """
    block = re.fullmatch(r"v\.blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if block:
        part = _SWAPPED.get(block[2], block[2]) if swapped else block[2]
        if part in _BLOCK:
            return f"vision_tower.encoder.layers.{block[1]}.{_BLOCK[part]}.{block[3]}"
    if name in _OTHER:
        return _OTHER[name]
    stem, _, kind = name.rpartition(".")
    if stem in _OTHER:
        return f"{_OTHER[stem]}.{kind}"
    raise UnsupportedModelError(f"{source}: tensor {name} has no counterpart in LLaVA")
