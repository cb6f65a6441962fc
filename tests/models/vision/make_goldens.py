"""Writes `goldens/*.npz`: toy LLaVA models and what transformers computes with them.

Needs torch 2.13.0, transformers 5.24.0 and pillow, in an environment of its own (the project needs
no torch). In the repository's root: `python -m tests.models.vision.make_goldens`. It writes the
same files byte for byte each time, on any x86.

A file holds one model: `config` and `processor` as JSON, its weights (`weights/…`), and for each
case `<case>/<what>`: `integers` (pixels before rescaling, uint8), `pixels`, `selected` (features
of the tower), `projected`, `packed` (what the language model is fed), `tokens` and `logits`.
`counts.npz` holds sizes of pictures and how many tokens each takes in models of real size.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

# MKL, torch and oneDNN choose their code by the CPU, and then last bits differ from one to another.
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["ONEDNN_MAX_CPU_ISA"] = "SSE41"

import numpy as np
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from tests.models.vision.pictures import pictures

FOLDER = Path(__file__).parent / "goldens"
IMAGE, VIDEO = 62, 63
BEFORE, AFTER = [1, 5, 9], [7, 11, 3]

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 7}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "image_size": 31, "patch_size": 6}
SIGLIP["vision_use_head"] = False
LLAMA, QWEN = {**TEXT, "model_type": "llama"}, {**TEXT, "model_type": "qwen2"}
SQUARE = {"height": 31, "width": 31}
HALF = [0.5, 0.5, 0.5]

MODELS: dict[str, tuple[Any, Any, Any, dict[str, Any], dict[str, Any]]] = {
    "llava": (
        LlavaForConditionalGeneration,
        LlavaConfig,
        LlavaImageProcessorPil,
        {"vision_config": CLIP, "text_config": LLAMA},
        {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    ),
    "llava_siglip": (
        LlavaForConditionalGeneration,
        LlavaConfig,
        LlavaImageProcessorPil,
        {
            "vision_config": SIGLIP,
            "text_config": LLAMA,
            "vision_feature_layer": [1, -1],
            "vision_feature_select_strategy": "full",
            "projector_hidden_act": "gelu_pytorch_tanh",
            "multimodal_projector_bias": False,
        },
        {"size": SQUARE, "do_center_crop": False, "do_pad": True, "resample": 2},
    ),
    "llava_next": (
        LlavaNextForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextImageProcessorPil,
        {
            "vision_config": CLIP,
            "text_config": LLAMA,
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
        },
        {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    ),
    "llava_onevision": (
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessorPil,
        {
            "vision_config": SIGLIP,
            "text_config": QWEN,
            "image_grid_pinpoints": [
                [31 * rows, 31 * columns] for rows in range(1, 5) for columns in range(1, 5)
            ],
            "video_token_index": VIDEO,
        },
        {"size": SQUARE, "image_mean": HALF, "image_std": HALF},
    ),
}

SIZES = {
    "llava": [(40, 60), (60, 40), (28, 28), (13, 17), (20, 100)],
    "llava_siglip": [(40, 60), (61, 40), (31, 31)],
    "llava_next": [(56, 56), (30, 90), (90, 30), (50, 70), (61, 43), (31, 200), (1, 60), (9, 9)],
    "llava_onevision": [(31, 31), (62, 93), (124, 124), (120, 110), (200, 40), (37, 150)],
}


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    FOLDER.mkdir(exist_ok=True)
    for name in MODELS:
        arrays = golden(name)
        np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    np.savez_compressed(FOLDER / "counts.npz", **counts())


def counts() -> dict[str, np.ndarray]:
    """How many tokens pictures of many sizes take at real size, by the processors' arithmetic."""
    sizes = np.random.default_rng(11).integers(1, 2500, (400, 2))
    sizes[:4] = [(55, 88), (110, 176), (1, 2000), (2000, 1)]
    following = LlavaNextProcessor.__new__(LlavaNextProcessor)
    following.patch_size, following.num_additional_image_tokens = 14, 1
    following.image_processor = LlavaNextImageProcessorPil()
    vision = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    vision.num_image_tokens, vision.vision_aspect_ratio = 27**2, "anyres_max_9"
    vision.image_processor = LlavaOnevisionImageProcessorPil()
    pairs = sizes.tolist()
    return {
        "sizes": sizes,
        "llava_next": np.array(
            [following._get_number_of_features(*pair, 336, 336) - 1 for pair in pairs]
        ),
        "llava_onevision": np.array(
            [vision._get_number_of_features(*pair, 384, 384) for pair in pairs]
        ),
    }


@torch.no_grad()
def golden(name: str) -> dict[str, np.ndarray]:
    model_class, config_class, processor_class, config, processor = MODELS[name]
    config = {**config, "image_token_index": IMAGE}
    if "grid" in str(config):
        processor = {**processor, "image_grid_pinpoints": config["image_grid_pinpoints"]}
    model = model_class(config_class(**config)).eval()
    set_weights(model)
    config["model_type"] = model.config.model_type
    arrays = {"config": as_bytes(config), "processor": as_bytes(processor)}
    arrays |= {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    cases = [f"{height}x{width}" for height, width in SIZES[name]]
    if name == "llava_onevision":
        cases.append("several")
    for case in cases:
        results = run(model, processor_class, processor, pictures(case))
        arrays |= {f"{case}/{key}": value for key, value in results.items()}
    if name == "llava_onevision":
        results = run_video(model, processor_class(**processor), pictures("video"))
        arrays |= {f"video/{key}": value for key, value in results.items()}
    return arrays


def set_weights(model: torch.nn.Module) -> None:
    """Normal numbers seeded by the parameter's name; norms and biases around their usual value."""
    for name, parameter in model.named_parameters():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        noise = np.random.default_rng(seed).standard_normal(tuple(parameter.shape))
        if parameter.ndim > 1:
            values = 1.5 * noise / np.sqrt(np.prod(parameter.shape[1:]))
        else:
            values = 0.2 * noise + ("norm" in name and name.endswith("weight"))
        parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def as_bytes(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def run(model: Any, processor_class: Any, settings: dict[str, Any], images: list[Any]) -> Any:
    several = len(images) > 1
    batch = [images] if several else images
    raw = processor_class(**settings, do_rescale=False, do_normalize=False)
    integers = raw(batch, return_tensors="np")["pixel_values"]
    inputs = dict(processor_class(**settings)(batch, return_tensors="pt"))
    pixels = inputs["pixel_values"]
    counted = model.get_image_features(**inputs, return_dict=True).pooler_output
    tokens = [*BEFORE]
    for features in counted:
        tokens += [IMAGE] * len(features) + AFTER
    seen, logits = observe(model, tokens, inputs)
    return {
        "integers": flat_tiles(integers).astype(np.uint8),
        "pixels": flat_tiles(pixels.numpy()),
        **seen,
        "packed": torch.cat(list(counted)).numpy(),
        "tokens": np.array(tokens, np.int32),
        "logits": logits,
    }


def run_video(model: Any, processor: Any, frames: list[Any]) -> dict[str, np.ndarray]:
    """Frames through the Pillow processor's own steps: its video twin needs torchvision."""
    pixels, integers = [], []
    for frame in frames:
        array = processor.process_image(frame, do_convert_rgb=True)
        array = processor.resize(array, size(processor), processor.resample)
        integers.append(array)
        array = processor.rescale(array, processor.rescale_factor)
        pixels.append(processor.normalize(array, processor.image_mean, processor.image_std))
    inputs = {"pixel_values_videos": torch.from_numpy(np.stack(pixels))[None]}
    packed = model.get_video_features(**inputs, return_dict=True).pooler_output[0]
    tokens = [*BEFORE, *[VIDEO] * len(packed), *AFTER]
    seen, logits = observe(model, tokens, inputs)
    return {
        "integers": flat_tiles(np.stack(integers)),
        "pixels": flat_tiles(np.stack(pixels)),
        **seen,
        "packed": packed.numpy(),
        "tokens": np.array(tokens, np.int32),
        "logits": logits,
    }


def size(processor: Any) -> Any:
    from transformers.image_utils import SizeDict

    return SizeDict(**dict(processor.size))


def observe(model: Any, tokens: list[int], inputs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The projector's input and output, and the logits."""
    seen: dict[str, Any] = {}

    def note(module: Any, given: Any, result: Any) -> None:
        seen["selected"], seen["projected"] = given[0].numpy(), result.numpy()

    handle = model.model.multi_modal_projector.register_forward_hook(note)
    logits = model(input_ids=torch.tensor([tokens]), **inputs).logits[0].numpy()
    handle.remove()
    return seen, logits


def flat_tiles(pixels: np.ndarray) -> np.ndarray:
    """`(tiles, height, width, 3)`."""
    tiles = np.asarray(pixels).reshape(-1, *np.shape(pixels)[-3:])
    return np.ascontiguousarray(tiles.transpose(0, 2, 3, 1))


if __name__ == "__main__":
    main()
