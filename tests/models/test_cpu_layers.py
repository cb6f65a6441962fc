"""Models on the CPU kernels compute what mlx-lm's own layers do."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.rope_utils import Llama3RoPE
from mlx_lm.models.switch_layers import SwitchLinear

from sgl_mlx.models.build import cast
from sgl_mlx.models.cpu_layers import use_kernels
from sgl_mlx.models.loader import load
from sgl_mlx.models.packed_layers import (
    PackedEmbedding,
    PackedLinear,
    PackedSwitchLinear,
    dequantize_others,
)
from tests.models.conftest import LLAMA, write_folder
from tests.models.toy import toy_config, toy_model

TOKENS = mx.array([[5, 6, 7, 8, 9, 10, 11]])
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def quantized(bits: int = 4, group_size: int = 32, **config: Any) -> nn.Module:
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, **config}
    model = toy_model("llama", {**LLAMA.full_config(), **wide})
    nn.quantize(model, group_size=group_size, bits=bits)
    model.set_dtype(mx.float32)
    return model


def both(kernels: ModuleType, **config: Any) -> tuple[nn.Module, nn.Module]:
    """On the kernels, and dequantized on MLX's own layers."""
    ours, plain = quantized(**config), quantized(**config)
    plain.load_weights(tree_flatten(ours.parameters()))
    cast(plain, mx.float32)
    use_kernels(ours, kernels)
    return ours, plain


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bits": 8, "group_size": 64},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"rope_scaling": LLAMA3},
        {"rope_traditional": True},
    ],
    ids=str,
)
def test_logits_are_those_of_the_dequantized_model(
    config: dict[str, Any], cpu_kernels: ModuleType
) -> None:
    ours, plain = both(cpu_kernels, **config)
    assert any(isinstance(m, PackedLinear) for m in ours.modules())
    np.testing.assert_allclose(np.array(ours(TOKENS)), np.array(plain(TOKENS)), atol=2e-5)


def test_every_kind_of_layer_is_replaced(cpu_kernels: ModuleType) -> None:
    ours, _ = both(cpu_kernels, rope_scaling=LLAMA3, tie_word_embeddings=True)
    kinds = {type(m) for m in ours.modules()}
    assert PackedEmbedding in kinds
    assert not kinds & {nn.QuantizedLinear, nn.RMSNorm, nn.RoPE, Llama3RoPE}


def test_weights_that_an_architecture_reaches_for_are_the_dequantized_ones(
    cpu_kernels: ModuleType,
) -> None:
    ours, plain = both(cpu_kernels)
    for got, want in (
        (ours.model.embed_tokens, plain.model.embed_tokens),
        (ours.model.layers[0].mlp.up_proj, plain.model.layers[0].mlp.up_proj),
    ):
        np.testing.assert_allclose(np.array(got.weight), np.array(want.weight), atol=1e-6)


def test_other_types_than_float32_fall_back(cpu_kernels: ModuleType) -> None:
    model = toy_model("llama", LLAMA.full_config())
    model.set_dtype(mx.bfloat16)
    before = model(TOKENS)
    use_kernels(model, cpu_kernels)
    assert mx.array_equal(model(TOKENS), before)


def test_only_layers_that_no_kernel_multiplies_are_dequantized(cpu_kernels: ModuleType) -> None:
    """A model of experts, some of whose layers have 3 bits, or widths that groups do not divide."""
    model = toy_model("mixtral", {**toy_config("mixtral"), "hidden_size": 64})
    nn.quantize(
        model,
        class_predicate=lambda name, m: (
            hasattr(m, "to_quantized")
            and m.weight.shape[-1] % 32 == 0
            and {"group_size": 32, "bits": 3 if "up_proj" in name or "q_proj" in name else 4}
        ),
    )
    model.set_dtype(mx.float32)
    want = model(TOKENS)
    dequantize_others(model)
    use_kernels(model, cpu_kernels)
    layer = model.model.layers[1]
    experts = layer.block_sparse_moe.switch_mlp
    assert type(experts.gate_proj) is PackedSwitchLinear
    assert type(experts.up_proj) is SwitchLinear
    assert type(layer.self_attn.q_proj) is nn.Linear
    assert type(layer.self_attn.k_proj) is PackedLinear
    np.testing.assert_allclose(np.array(model(TOKENS)), np.array(want), atol=2e-5)


def test_a_folder_stays_quantized_unless_a_dtype_is_asked_for(
    tmp_path: Path, cpu_kernels: ModuleType
) -> None:
    model = quantized()
    config = {
        **LLAMA.full_config(),
        **{"hidden_size": 64, "intermediate_size": 128, "head_dim": 32},
        "quantization": {"group_size": 32, "bits": 4},
    }
    arrays = {name: np.array(x) for name, x in tree_flatten(model.parameters())}
    folder = write_folder(tmp_path / "toy", config, arrays)
    packed, plain = load(str(folder)), load(str(folder), dtype="float32")
    assert any(isinstance(m, PackedLinear) for m in packed.model.modules())
    assert all(type(m) is not PackedLinear for m in plain.model.modules())
    assert packed.fingerprint != plain.fingerprint
    np.testing.assert_allclose(
        np.array(packed.model(TOKENS)), np.array(plain.model(TOKENS)), atol=2e-5
    )
