"""A GGUF language model with a GGUF mmproj: the same features as the folder, or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import quantize

from sgl_mlx.errors import (
    CorruptModelError,
    MemoryLimitError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.models.vision.mmproj import load_mmproj
from tests.models.vision.conftest import read_golden
from tests.models.vision.pictures import picture

PARTS = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "out_proj": "attn_out"}
PARTS |= {"layer_norm1": "ln1", "layer_norm2": "ln2", "fc1": "ffn_up", "fc2": "ffn_down"}
OUTER = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
}
OTHER = {
    "pre_layrnorm": "v.pre_ln",
    "post_layernorm": "v.post_ln",
    "linear_1": "mm.0",
    "linear_2": "mm.2",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of one of transformers' parameters."""
    bare = name.removeprefix("model.vision_tower.")
    if bare in OUTER:
        return OUTER[bare]
    if name.endswith("image_newline"):
        return "model.image_newline"
    *front, part, kind = bare.split(".")
    if part in OTHER:
        return f"{OTHER[part]}.{kind}"
    return f"v.blk.{front[2]}.{PARTS[part]}.{kind}"


def write_mmproj(
    path: Path, name: str = "llava", swap: bool = False, kind: Type = Type.F32, **changes: Any
) -> Path:
    golden = read_golden(name)
    tower = golden.config["vision_config"]
    writer = GGUFWriter(path, changes.pop("architecture", "clip"))
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(changes.pop("projector", "mlp"))
    writer.add_vision_image_size(changes.pop("image_size", tower["image_size"]))
    writer.add_vision_patch_size(tower["patch_size"])
    writer.add_vision_embedding_length(tower["hidden_size"])
    writer.add_vision_feed_forward_length(tower["intermediate_size"])
    writer.add_vision_block_count(tower["num_hidden_layers"])
    writer.add_vision_head_count(tower["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.48145466, 0.4578275, 0.40821073])
    writer.add_vision_image_std([0.26862954, 0.26130258, 0.27577711])
    writer.add_vision_use_gelu(False)
    if name == "llava_next":
        writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
        pairs = [(width, height) for height, width in golden.config["image_grid_pinpoints"]]
        writer.add_array("clip.vision.image_grid_pinpoints", [n for pair in pairs for n in pair])
    drop = changes.pop("drop", None)
    for key, values in golden.weights.items():
        if "language_model" in key or "lm_head" in key or (drop and drop in key):
            continue
        target = gguf_name(key)
        if swap and "ffn" in target:
            other = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
            part = target.split(".")[3]
            target = target.replace(part, other[part])
        fits = values.ndim == 2 and values.shape[1] % 32 == 0
        own = kind if fits else Type.F32
        writer.add_tensor(target, quantize(values, own), raw_dtype=own)
    for key, values in changes.items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def language_model(write_toy: Callable[..., tuple[Path, Path]], toy_class: Any) -> Path:
    """As wide as the goldens' projectors."""
    config = {"hidden_size": 32, "head_dim": 8}
    return write_toy(toy_class("llama", "llama", config), Type.F32)[0]


@pytest.mark.parametrize("name", ["llava", "llava_next"])
@pytest.mark.parametrize("swap", [False, True])
def test_features_are_those_of_the_folder(
    toys: Callable[[str], LoadedModel], tmp_path: Path, name: str, swap: bool
) -> None:
    file = GGUFFile(write_mmproj(tmp_path / "mmproj.gguf", name, swap))
    found, expected = load_mmproj(file, 32, None, mx.float32), toys(name).vision
    assert expected is not None
    image = picture(40, 40)  # a square, which neither crops nor pads
    ours, theirs = found.prepare(image), expected.prepare(image)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert mx.allclose(found.encode([ours])[0], expected.encode([theirs])[0], atol=1e-4)


@pytest.mark.parametrize(("kind", "dtype"), [(Type.F16, "float16"), (Type.Q8_0, "float16")])
def test_half_and_quantized_files_come_near(
    toys: Callable[[str], LoadedModel], tmp_path: Path, kind: Type, dtype: str
) -> None:
    file = GGUFFile(write_mmproj(tmp_path / "mmproj.gguf", kind=kind))
    found, expected = load_mmproj(file, 32, None, None), toys("llava").vision
    assert expected is not None
    features = found.encode([found.prepare(picture(40, 40))])[0]
    exact = expected.encode([expected.prepare(picture(40, 40))])[0]
    assert features.dtype == getattr(mx, dtype)
    assert mx.abs(features - exact).max() < 0.05 * mx.abs(exact).max()


def test_pictures_are_padded_to_a_square_as_llama_cpp_does(tmp_path: Path) -> None:
    model = load_mmproj(GGUFFile(write_mmproj(tmp_path / "mmproj.gguf")), 32, None, None)
    pixels = model.prepare(picture(14, 56)).pixels[0]
    assert np.allclose(pixels[0], pixels[0, 0])
    assert not np.allclose(pixels[14], pixels[14, 0], atol=0.1)


def test_a_language_model_is_loaded_with_its_vision_part(
    language_model: Path, tmp_path: Path
) -> None:
    mmproj = write_mmproj(tmp_path / "mmproj.gguf")
    plain, loaded = load(language_model), load(language_model, mmproj=str(mmproj))
    assert plain.vision is None
    assert loaded.vision is not None
    assert loaded.vision.image_token.id is None
    features = loaded.vision.encode([loaded.vision.prepare(picture(20, 30))])
    assert features[0].shape == (16, 32)
    assert loaded.weight_bytes > plain.weight_bytes
    assert loaded.fingerprint != plain.fingerprint


def test_memory_is_counted_for_both_files(language_model: Path, tmp_path: Path) -> None:
    mmproj = write_mmproj(tmp_path / "mmproj.gguf")
    room = int(load(language_model, dtype="float32").weight_bytes * 1.3)
    load(language_model, dtype="float32", available=room)
    with pytest.raises(MemoryLimitError):
        load(language_model, dtype="float32", available=room, mmproj=mmproj)


@pytest.mark.parametrize(
    ("changes", "error", "fault"),
    [
        ({"architecture": "llama"}, UnsupportedModelError, "is no mmproj file"),
        ({"projector": "resampler"}, UnsupportedModelError, "projector 'resampler'"),
        ({"image_size": 0}, CorruptModelError, "image_size is 0"),
        ({"image_size": 35}, CorruptModelError, "position_embedding.weight has shape"),
        ({"drop": "linear_2"}, CorruptModelError, r"lacks the tensor mm\.2\.weight"),
        ({"drop": "layers.0.self_attn.q_proj"}, CorruptModelError, "q_proj.weight is missing"),
        ({"mm.3.weight": np.ones((4, 4), np.float32)}, UnsupportedModelError, r"mm\.3\.weight"),
    ],
)
def test_what_is_no_llava_mmproj_is_refused(
    language_model: Path, tmp_path: Path, changes: dict[str, Any], error: type, fault: str
) -> None:
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", **changes)
    with pytest.raises(error, match=fault):
        load(language_model, mmproj=mmproj)


def test_another_models_mmproj_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    mmproj = write_mmproj(tmp_path / "mmproj.gguf")
    with pytest.raises(CorruptModelError, match="width 32, the language model takes 64"):
        load(gguf_path, mmproj=mmproj)


def test_a_missing_mmproj_and_one_beside_a_folder_are_refused(
    gguf_path: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf does not exist"):
        load(gguf_path, mmproj=tmp_path / "none.gguf")
    with pytest.raises(UnsupportedModelError, match="goes with a GGUF language model"):
        load(folder, mmproj=write_mmproj(tmp_path / "mmproj.gguf"))
