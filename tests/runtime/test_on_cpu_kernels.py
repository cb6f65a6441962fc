"""Quantized models whose widths the CPU kernels take answer as mlx-lm does, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model

from sgl_mlx.cpu_kernels import build
from sgl_mlx.runtime.engine import Engine
from tests.models.conftest import TOKENS, write_folder
from tests.models.toy import toy_config, toy_model
from tests.runtime.hybrids import greedy, text

NEW = 6
DELTA_HEADS = {"linear_key_head_dim": 32, "linear_value_head_dim": 16}
KIMI_HEADS = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}
LATENTS = {"kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
MODELS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "qwen3_next": (DELTA_HEADS, {"gated_delta", "short_convolution", "linear_of_experts"}),
    "kimi_linear": (
        {"linear_attn_config": {**KIMI_HEADS, "kda_layers": [1, 2, 4]}, **LATENTS},
        {"gated_delta", "channel_decay", "short_convolution", "linear_of_experts"},
    ),
    "nemotron_h": ({"ssm_state_size": 16}, {"state_space", "short_convolution"}),
    "lfm2": ({"block_dim": 64}, {"short_convolution"}),
    "deepseek_v3": (LATENTS, {"linear_of_experts"}),
    "qwen3_moe": ({}, {"linear_of_experts"}),
}
"""Changes to the toy's widths by architecture, and kernels that it needs beside attention."""
ALL = {"hidden_size": 64, "head_dim": 16, "moe_intermediate_size": 32, "vocab_size": len(TOKENS)}
ATTENTION = {"extend_attention", "decode_attention", "linear", "rms_norm"}


class Counting(ModuleType):
    """The kernels, with the names of those that were used."""

    def __init__(self, kernels: ModuleType) -> None:
        super().__init__("counting")
        self._kernels = kernels
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(self._kernels, name)


def quantized(architecture: str) -> tuple[nn.Module, dict[str, Any]]:
    config = toy_config(architecture) | ALL | MODELS[architecture][0]
    model = toy_model(architecture, config)

    def fits(_: str, layer: nn.Module) -> bool:
        return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 32 == 0

    nn.quantize(model, 32, 4, class_predicate=fits)
    return model, config | {"quantization": {"group_size": 32, "bits": 4}}


def says(model: nn.Module) -> Callable[[tuple[int, ...]], list[int]]:
    def alone(prompt: tuple[int, ...]) -> list[int]:
        caches, fed, made = make_prompt_cache(model), list(prompt), []
        for _ in range(NEW):
            made.append(int(mx.argmax(model(mx.array([fed]), cache=caches)[0, -1])))
            fed = made[-1:]
        return made

    return alone


@pytest.mark.parametrize("architecture", MODELS)
def test_an_uneven_batch_and_a_fork(
    architecture: str, tmp_path: Path, cpu_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Counting(cpu_kernels)
    monkeypatch.setattr(build, "load", lambda: kernels)
    model, config = quantized(architecture)
    weights = {name: np.array(x) for name, x in tree_flatten(model.parameters())}
    folder = write_folder(tmp_path / "toy", config, weights)
    alone = says(dequantize_model(model))
    prompts = [text(i, n) for i, n in enumerate([1, 2, 17, 17, 40, 71])]
    forks = [(*prompts[-1], *text(70 + i, 4)) for i in range(4)]
    with Engine(str(folder), max_total_tokens=2000, chunked_prefill_size=16) as engine:
        assert engine.get_server_info()["attention_path"] == "ragged"
        for batch in (prompts, forks):
            assert greedy(engine, batch, NEW) == [alone(p) for p in batch]
    assert kernels.used >= ATTENTION | MODELS[architecture][1]
