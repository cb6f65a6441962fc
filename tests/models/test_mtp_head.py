"""MTP heads of toy checkpoints against numpy, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache

from sgl_mlx import machine
from sgl_mlx.errors import CorruptModelError, MemoryLimitError, UnsupportedModelError
from sgl_mlx.models import memory, mtp_module
from sgl_mlx.models.loader import load
from sgl_mlx.models.mtp_head import Head, load_head
from sgl_mlx.models.mtp_module import joining
from sgl_mlx.models.trunk import trunk_of
from tests.models.mtp_reference import Reference
from tests.models.mtp_toys import (
    NAMED_AS_DEEPSEEK,
    WITH_HEADS,
    Weights,
    config_of,
    hidden_of,
    published,
    random_head,
    write_toy,
)
from tests.models.toy import toy_model

TOLERANCE = 1e-4
"""Largest difference between logits in float32 and in float64; logits are of size 1 to 10."""


def head_of(folder: Path, dtype: mx.Dtype = mx.float32) -> tuple[Head, nn.Module]:
    loaded = load(folder)
    return load_head(loaded.model, loaded.config, folder, dtype), loaded.model


def toy_head(architecture: str) -> Weights:
    return random_head(architecture, toy_model(architecture, config_of(architecture)))


def reference_of(architecture: str, head: Weights, model: nn.Module) -> Reference:
    holder = getattr(model, "language_model", model)
    embedding, output = trunk_of(model).embed_tokens.weight, holder.lm_head.weight
    return Reference(architecture, config_of(architecture), head, embedding, output)


def logits_alone(head: Head, tokens: list[int], hidden: mx.array) -> mx.array:
    """The head's logits, over one sequence with mlx-lm's own cache."""
    module = head.adapter.model
    with joining(hidden):
        found: mx.array = module(mx.array([tokens]), cache=make_prompt_cache(module))[0]
    return found


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_head_computes_what_its_publication_says(architecture: str, tmp_path: Path) -> None:
    weights = toy_head(architecture)
    head, model = head_of(write_toy(tmp_path / "toy", architecture, weights)[0])
    reference = reference_of(architecture, weights, model)

    @given(st.lists(st.integers(3, 280), min_size=2, max_size=40))
    @settings(max_examples=15, deadline=None, derandomize=True)
    def agrees(tokens: list[int]) -> None:
        hidden = hidden_of(model, tokens)[:-1]
        right, _ = reference(tokens[1:], hidden)
        found = logits_alone(head, tokens[1:], hidden)
        assert np.abs(np.array(found) - right).max() < TOLERANCE

    agrees()


def test_norms_of_a_file_that_mlx_wrote_are_not_shifted(tmp_path: Path) -> None:
    weights = toy_head("qwen3_5")
    raw, converted = tmp_path / "raw", tmp_path / "converted"
    write_toy(raw, "qwen3_5", weights)
    write_toy(converted, "qwen3_5", None)
    mine = {f"language_model.mtp.{name}": mx.array(w) for name, w in weights.items()}
    mx.save_safetensors(str(converted / "model-mtp.safetensors"), mine, {"format": "mlx"})
    tokens, hidden = [5, 6, 7], mx.random.normal((3, 32))
    one, other = (logits_alone(head_of(folder)[0], tokens, hidden) for folder in (raw, converted))
    assert mx.allclose(one, other, atol=1e-5)


def test_fused_experts_are_read_as_single_ones(tmp_path: Path) -> None:
    weights = toy_head("qwen3_5_moe")
    fused = {name: w for name, w in weights.items() if ".experts." not in name}
    stacks: dict[str, Any] = {}
    for kind in ("gate", "up", "down"):
        names = [f"layers.0.mlp.experts.{i}.{kind}_proj.weight" for i in range(4)]
        stacks[kind] = np.stack([weights[name] for name in names])
    both = np.concatenate([stacks["gate"], stacks["up"]], axis=1)
    fused |= {"layers.0.mlp.experts.gate_up_proj": both}
    fused |= {"layers.0.mlp.experts.down_proj": stacks["down"]}
    tokens, hidden = [5, 6, 7], mx.random.normal((3, 32))
    found = [
        logits_alone(head_of(write_toy(tmp_path / name, "qwen3_5_moe", w)[0])[0], tokens, hidden)
        for name, w in (("single", weights), ("fused", fused))
    ]
    assert mx.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_quantized_head_computes_nearly_the_same(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it stays quantized, on a CPU it is dequantized."""
    weights = toy_head("qwen3_5")
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    write_toy(plain, "qwen3_5", weights)
    write_toy(packed, "qwen3_5", None)
    mine: dict[str, mx.array] = {}
    for name, weight in weights.items():
        array = mx.array(weight)
        if weight.ndim == 2 and weight.shape[-1] % 32 == 0:
            stem = f"mtp.{name.removesuffix('.weight')}"
            parts = mx.quantize(array, group_size=32, bits=8)
            mine |= dict(
                zip([f"{stem}.{x}" for x in ("weight", "scales", "biases")], parts, strict=True)
            )
        else:
            mine[f"mtp.{name}"] = array
    mx.save_safetensors(str(packed / "model-mtp.safetensors"), mine, {"format": "mlx"})
    tokens, hidden = [5, 6, 7], mx.random.normal((3, 32))
    right = logits_alone(head_of(plain)[0], tokens, hidden)
    loaded = load(packed)
    monkeypatch.setattr(machine, "on_gpu", lambda: gpu)
    head = load_head(loaded.model, loaded.config, packed, mx.float32)
    found = {type(module) for module in head.adapter.model.modules()}
    assert (nn.QuantizedLinear in found) == gpu
    assert mx.abs(logits_alone(head, tokens, hidden) - right).max() < 0.3


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_checkpoint_without_a_head_says_what_was_looked_for(
    architecture: str, tmp_path: Path
) -> None:
    folder, model = write_toy(tmp_path / "toy", architecture, None)
    names = r"mtp\.\*" if architecture not in NAMED_AS_DEEPSEEK else r"model\.layers\.4\.\*"
    field = r"(mtp_num_hidden_layers|num_nextn_predict_layers) = 1"
    with pytest.raises(UnsupportedModelError, match=rf"no MTP head.* {names}.*{field}"):
        load_head(model, config_of(architecture), folder, mx.float32)


def test_other_architectures_and_other_files_are_refused(tmp_path: Path) -> None:
    llama = toy_model("qwen3", config_of("qwen3"))
    with pytest.raises(UnsupportedModelError, match=r"deepseek_v3, .*architecture qwen3"):
        load_head(llama, config_of("qwen3"), tmp_path, mx.float32)
    model = toy_model("qwen3_5", config_of("qwen3_5"))
    with pytest.raises(UnsupportedModelError, match="safetensors files alone"):
        load_head(model, config_of("qwen3_5"), tmp_path / "model.gguf", mx.float32)


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_each_missing_weight_and_each_wrong_shape_is_named(
    architecture: str, tmp_path: Path
) -> None:
    """Every kind of weight in turn; single experts stand for all."""
    weights = toy_head(architecture)
    folder, model = write_toy(tmp_path / "toy", architecture, None)
    config = config_of(architecture)
    names = [name for name in weights if ".experts." not in name or ".experts.3." in name]
    for name in names:
        wrong = {n: w for n, w in weights.items() if n != name}
        if ".experts." not in name:
            wrong_shape = weights | {name: np.zeros((3, *weights[name].shape[1:]), np.float32)}
            check_refused(folder, architecture, config, model, wrong_shape)
        check_refused(folder, architecture, config, model, wrong)


def test_a_head_that_does_not_fit_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = write_toy(tmp_path / "toy", "qwen3_5", toy_head("qwen3_5"))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(mtp_module.mx, "eval", None)
    with pytest.raises(MemoryLimitError, match=r"MTP head of .* does not fit"):
        load_head(model, config_of("qwen3_5"), folder, mx.float32)


def check_refused(
    folder: Path, architecture: str, config: dict[str, Any], model: nn.Module, head: Weights
) -> None:
    found = {n: mx.array(w) for n, w in published(architecture, config, head).items()}
    mx.save_safetensors(str(folder / "model-mtp.safetensors"), found)
    with pytest.raises(CorruptModelError, match=r"MTP head.*(is missing|has shape|do not fit)"):
        load_head(model, config, folder, mx.float32)


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_model_loads_with_a_head_of_any_layout(architecture: str, tmp_path: Path) -> None:
    """Heads after any number of layers, and beside experts that are stacked already."""
    folder, model = write_toy(tmp_path / "toy", architecture, toy_head(architecture))
    tokens = [5, 9, 100, 7]
    assert mx.allclose(load(folder).model(mx.array([tokens])), model(mx.array([tokens])), atol=1e-4)


def test_a_head_in_fp8_with_scales_of_blocks_is_dequantized(tmp_path: Path) -> None:
    """As DeepSeek publishes it: all products of the decoder layer but its router's."""
    weights, packed, rounded = toy_head("deepseek_v3"), dict[str, mx.array](), Weights()
    for name, weight in weights.items():
        stem, array = f"model.layers.4.{name}", mx.array(weight)
        if name.startswith(("self_attn.", "mlp.")) and weight.ndim == 2 and "gate.w" not in name:
            packed[stem] = mx.to_fp8(array * 2)
            packed[f"{stem}_scale_inv"] = mx.full((1, 1), 0.5)
            array = mx.from_fp8(packed[stem], dtype=mx.float32) / 2
        else:
            packed[stem] = array
        rounded[name] = np.array(array)
    folder, _ = write_toy(tmp_path / "fp8", "deepseek_v3", None)
    mx.save_safetensors(str(folder / "model-mtp.safetensors"), packed, {"format": "pt"})
    tokens, hidden = [5, 6, 7], mx.random.normal((3, 32))
    found = logits_alone(head_of(folder)[0], tokens, hidden)
    plain = write_toy(tmp_path / "plain", "deepseek_v3", rounded)[0]
    assert mx.allclose(found, logits_alone(head_of(plain)[0], tokens, hidden), atol=1e-4)
