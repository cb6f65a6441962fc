"""Writing of a vision part with random weights as a GGUF file, for llama.cpp and our engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from sgl_mlx.benchmarks.micro.random_tower import TOWERS, random_weights
from sgl_mlx.models.vision.mmproj import file_name

_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]


def write_mmproj(path: Path, tower: str, text_width: int) -> None:
    """Write the vision tower and projector of a LLaVA-1.5, with random weights, as a GGUF file.

    Args:
        tower: one of `TOWERS`.
        text_width: width of the language model that the file is for.
    """
    shape = TOWERS[tower]
    writer = GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(text_width)
    writer.add_vision_image_size(shape["image_size"])
    writer.add_vision_patch_size(shape["patch_size"])
    writer.add_vision_embedding_length(shape["hidden_size"])
    writer.add_vision_feed_forward_length(shape["intermediate_size"])
    writer.add_vision_block_count(shape["num_hidden_layers"])
    writer.add_vision_head_count(shape["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean(_MEAN)
    writer.add_vision_image_std(_STD)
    writer.add_vision_use_gelu(False)
    for name, values in random_weights(tower, text_width):
        matrix = values.ndim == 2 and "embedding" not in name
        writer.add_tensor(file_name(name), values if matrix else values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
