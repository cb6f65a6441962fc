"""GGUF weights: a toy of every architecture computes what the same weights in a folder do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.gguf.weights import weight_name
from sgl_mlx.models.loader import LoadedModel, load

PROMPT = [1, 7, 200, 31, 260, 12, 5]
KINDS = [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
Write = Callable[[Any, Type], tuple[Path, Path]]

SLIDING = {"sliding_window": 512, "query_pre_attn_scalar": 16.0, "rope_local_base_freq": 10000.0}
SOFT_CAPS = {"attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}
LONG = np.linspace(1, 4, 8, dtype=np.float32)
LONG_ROPE = {"type": "longrope", "long_factor": LONG.tolist(), "short_factor": LONG.tolist()}
LONG_ROPE |= {"original_max_position_embeddings": 512}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"architecture": "llama", "model_type": "llama"},
    "llama-tied": {
        "architecture": "llama",
        "model_type": "llama",
        "config": {"tie_word_embeddings": True},
    },
    "llama-linear-rope": {
        "architecture": "llama",
        "model_type": "llama",
        "config": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    },
    "llama-linear-rope-of-2023": {
        "architecture": "llama",
        "model_type": "llama",
        "config": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "metadata": {"rope.scale_linear": 4.0},
    },
    "llama-rope-factors": {
        "architecture": "llama",
        "model_type": "llama",
        "config": {"rope_scaling": LONG_ROPE},
        "metadata": {"rope_freqs.weight": LONG},
    },
    "mixtral": {
        "architecture": "llama",
        "model_type": "mixtral",
        "config": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "metadata": EXPERTS,
    },
    "qwen2": {"architecture": "qwen2", "model_type": "qwen2"},
    "qwen3": {"architecture": "qwen3", "model_type": "qwen3"},
    "qwen3moe": {
        "architecture": "qwen3moe",
        "model_type": "qwen3_moe",
        "config": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        },
        "metadata": {**EXPERTS, "expert_feed_forward_length": 32},
    },
    "phi3": {"architecture": "phi3", "model_type": "phi3"},
    "gemma": {
        "architecture": "gemma",
        "model_type": "gemma",
        "config": {"tie_word_embeddings": True},
    },
    "gemma2": {
        "architecture": "gemma2",
        "model_type": "gemma2",
        "config": {"tie_word_embeddings": True, "query_pre_attn_scalar": 16.0, **SOFT_CAPS},
        "metadata": SOFT_CAPS,
    },
    "gemma3": {
        "architecture": "gemma3",
        "model_type": "gemma3_text",
        "config": {"tie_word_embeddings": True, "num_hidden_layers": 6, **SLIDING},
        "metadata": {"attention.sliding_window": 512},
    },
}


def logits(loaded: LoadedModel) -> mx.array:
    return loaded.model(mx.array([PROMPT]))[0].astype(mx.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_computes_what_its_folder_does(
    name: str, write_toy: Write, toy_class: Any
) -> None:
    path, folder = write_toy(toy_class(**ARCHITECTURES[name]), Type.F32)
    from_gguf = logits(load(path, dtype="float32"))
    from_folder = logits(load(folder, dtype="float32"))
    assert mx.abs(from_folder).max() > 0.1
    assert mx.allclose(from_gguf, from_folder, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_of_tensor_dequantizes_to_the_numbers_it_stands_for(
    name: str, kind: Type, write_toy: Write, toy_class: Any
) -> None:
    path, folder = write_toy(toy_class(**ARCHITECTURES[name]), kind)
    expected = logits(load(folder, dtype="float32"))
    assert mx.allclose(logits(load(path, dtype="float32")), expected, atol=3e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_native_weights_compute_nearly_the_same(
    kind: Type, write_toy: Write, toy_class: Any
) -> None:
    path, folder = write_toy(toy_class(**ARCHITECTURES["llama"]), kind)
    expected = logits(load(folder, dtype="float32"))
    error = mx.abs(logits(load(path, dtype="native")) - expected).max()
    assert error < 0.06 * mx.abs(expected).max()


@pytest.mark.parametrize(("kind", "bits"), [(Type.Q4_0, 4), (Type.Q4_1, 4), (Type.Q8_0, 8)])
def test_blocks_stay_quantized_when_native(
    kind: Type, bits: int, write_toy: Write, toy_class: Any
) -> None:
    path, _ = write_toy(toy_class(**ARCHITECTURES["llama"]), kind)
    layer = load(path, dtype="native").model.layers[0].self_attn.q_proj
    assert (layer.bits, layer.group_size, layer.scales.dtype) == (bits, 32, mx.float16)


@pytest.mark.parametrize(("kind", "dtype"), [(Type.BF16, mx.bfloat16), (Type.F16, mx.float16)])
def test_float_weights_keep_their_type_when_native(
    kind: Type, dtype: mx.Dtype, write_toy: Write, toy_class: Any
) -> None:
    path, _ = write_toy(toy_class(**ARCHITECTURES["llama"]), kind)
    assert load(path, dtype="native").model.layers[0].self_attn.q_proj.weight.dtype == dtype


def test_a_tensor_no_layer_has_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ssm_in\.weight .* llama"):
        weight_name("blk.0.ssm_in.weight", "llama")
