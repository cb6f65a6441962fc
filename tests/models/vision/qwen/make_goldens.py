"""Writes `../goldens/qwen*.npz`: toy Qwen models and what transformers computes with them.

Needs the environment of `tests.models.vision.make_goldens`. In the repository's root:
`python -m tests.models.vision.qwen.make_goldens`. It writes the same files byte for byte each time.

A file holds one model: `config` and `processor` as JSON, its weights (`weights/…`), and for each
case `<case>/<what>`: `pixels` (as the processor gives them), `grid` (patches of each picture),
`packed` (what the language model is fed), `tokens`, `positions` (time, row, column), `logits`, and
`continued` (the likeliest next tokens, each computed with all tokens before it).
`qwen_counts.npz` holds sizes of pictures and their sizes after resizing, in models of real size.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from tests.models.vision.make_goldens import FOLDER, as_bytes, set_weights  # pins the CPU's code

# isort: split
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from tests.models.vision.pictures import pictures

START, END, IMAGE, VIDEO = 60, 61, 62, 63
BEFORE, AFTER = [3, 5, 9], [7, 11, 4]
HALF = [0.5, 0.5, 0.5]

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_interleaved": True}
HYBRID = {
    **TEXT,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
WHOLE_TURNED = {**ROPE, "mrope_section": [3, 3, 2]}
HALF_TURNED = {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
OLDER = {
    **TEXT,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 1000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
COMMON = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
VISION = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_position_embeddings": 36,
}
WINDOWED = {
    **COMMON,
    "hidden_size": 48,
    "intermediate_size": 40,
    "out_hidden_size": 32,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
PROCESSOR = {
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 1600},
    "image_mean": HALF,
    "image_std": HALF,
}

MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3_5": (
        Qwen3_5ForConditionalGeneration,
        Qwen3_5Config,
        {
            "text_config": HYBRID | {"model_type": "qwen3_5_text", "rope_parameters": HALF_TURNED},
            "vision_config": VISION,
        },
    ),
    "qwen3_vl": (
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        {
            "text_config": TEXT | {"model_type": "qwen3_vl_text", "rope_parameters": WHOLE_TURNED},
            "vision_config": {**VISION, "deepstack_visual_indexes": [0, 2]},
        },
    ),
    "qwen2_vl": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig,
        {
            "text_config": OLDER | {"model_type": "qwen2_vl_text"},
            "vision_config": COMMON | {"embed_dim": 24, "mlp_ratio": 2, "hidden_size": 32},
        },
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        {
            "text_config": OLDER | {"model_type": "qwen2_5_vl_text"},
            "vision_config": WINDOWED,
        },
    ),
}
NEW = 12
CASES = ["40x60", "60x40", "16x16", "13x17", "20x100", "several"]
MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in MODELS:
        np.savez_compressed(FOLDER / f"{name}.npz", **golden(name))
    np.savez_compressed(FOLDER / "qwen_counts.npz", **counts())


def counts() -> dict[str, np.ndarray]:
    """Sizes of pictures, the bounds on their pixels, and their sizes after resizing."""
    draw = np.random.default_rng(11)
    sizes = draw.integers(10, 3000, (400, 2))
    bounds = np.array([(65536, 16777216), (3136, 1003520), (200704, 1003520)])
    chosen = bounds[draw.integers(0, len(bounds), len(sizes))]
    resized = [
        smart_resize(*size, factor=32, min_pixels=least, max_pixels=most)
        for size, (least, most) in zip(sizes.tolist(), chosen.tolist(), strict=True)
    ]
    return {"sizes": sizes, "bounds": chosen, "resized": np.array(resized)}


@torch.no_grad()
def golden(name: str) -> dict[str, np.ndarray]:
    model_class, config_class, given = MODELS[name]
    model = model_class(config_class(**deepcopy(given), **MARKS)).eval()
    set_weights(model)
    model.lm_head.weight[START:] = 0  # so that no mark is ever the likeliest token
    config = {**given, **MARKS, "model_type": model.config.model_type}
    arrays = {"config": as_bytes(config), "processor": as_bytes(PROCESSOR)}
    arrays |= {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    for case in CASES:
        arrays |= {f"{case}/{key}": value for key, value in run(model, pictures(case)).items()}
    return arrays


def run(model: Any, images: list[Any]) -> dict[str, np.ndarray]:
    inputs = dict(Qwen2VLImageProcessorPil(**PROCESSOR)(images, return_tensors="pt"))
    grids = inputs["image_grid_thw"]
    seen = model.model.get_image_features(**inputs, return_dict=True)
    tokens = [*BEFORE]
    for grid in grids.tolist():
        tokens += [START, *[IMAGE] * (grid[1] * grid[2] // 4), END, *AFTER]
    ids = torch.tensor([tokens])
    positions, _ = model.model.get_rope_index(ids, (ids == IMAGE).int(), image_grid_thw=grids)
    logits = logits_of(model, tokens, inputs)
    continued = [int(logits[-1].argmax())]
    while len(continued) < NEW:
        continued.append(int(logits_of(model, tokens + continued, inputs)[-1].argmax()))
    deep = [torch.cat(list(x)) for x in getattr(seen, "deepstack_features", None) or ()]
    packed = torch.cat([torch.cat(list(seen.pooler_output)), *deep], dim=-1)
    return {
        "pixels": inputs["pixel_values"].numpy(),
        "grid": grids[:, 1:].numpy(),
        "packed": packed.numpy(),
        "tokens": np.array(tokens, np.int32),
        "positions": positions[:, 0].numpy().astype(np.int32),
        "logits": logits.numpy(),
        "continued": np.array(continued, np.int32),
    }


def logits_of(model: Any, tokens: list[int], inputs: dict[str, Any]) -> torch.Tensor:
    ids = torch.tensor([tokens])
    return model(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int(), **inputs).logits[0]


if __name__ == "__main__":
    main()
