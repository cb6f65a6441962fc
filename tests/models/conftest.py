"""Toy models, written to disk both as GGUF files and as MLX folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

Weights = dict[str, NDArray[np.float32]]

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "ab", "▁ab"]
TOKENS += [f"pad{n}" for n in range(288 - len(TOKENS))]
KINDS = [2, 3, 3, *([6] * 256), *([1] * (288 - 259))]

BASE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 512,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}

ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
ATTENTION |= {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "qkv_proj": "attn_qkv"}
FEED_FORWARD = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
FEED_FORWARD |= {"gate_up_proj": "ffn_up", "gate": "ffn_gate_inp"}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Toy:
    """An architecture at toy size: GGUF's name for it, its metadata, and the same as a config."""

    architecture: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def full_config(self) -> dict[str, Any]:
        return {**BASE, "model_type": self.model_type, **self.config}


def random_weights(config: dict[str, Any]) -> Weights:
    """Weights for every parameter of mlx-lm's model, under its names."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    if hasattr(model, "sanitize") and config["tie_word_embeddings"]:
        model.sanitize({})
    draw = np.random.default_rng(7)
    return {
        name: draw.normal(0, 0.3, p.shape).astype(np.float32)
        for name, p in tree_flatten(model.parameters())
    }


def gguf_name(name: str, model_type: str) -> str:
    """GGUF's name of one of mlx-lm's parameters."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(?:\w+\.)*?(switch_mlp\.)?(\w+)", stem)
    assert match
    layer, experts, part = match.groups()
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if model_type in ("gemma2", "gemma3_text"):
        norms |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    short = {**ATTENTION, **FEED_FORWARD, **norms}[part]
    return f"blk.{layer}.{short}{'_exps' if experts else ''}.{kind}"


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder q and k of the llama architecture as llama.cpp's converter does."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, toy: Toy, weights: Weights, kind: Type = Type.F32) -> Weights:
    """Write the weights, matrices as `kind`; return them as a reader should see them."""
    config = toy.full_config()
    writer = GGUFWriter(path, toy.architecture)
    write_metadata(writer, toy, config)
    seen: Weights = {}
    for name, values in weights.items():
        seen[name] = add_tensor(writer, name, values, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen


def add_tensor(
    writer: GGUFWriter, name: str, values: NDArray[Any], config: dict[str, Any], kind: Type
) -> NDArray[np.float32]:
    stored, model_type = values, config["model_type"]
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    swap = model_type in ("llama", "mixtral") and part in heads
    if swap:
        stored = interleave(values, config[heads[part]])
    if model_type.startswith("gemma") and "norm" in part:
        stored = values + 1
    if values.ndim == 1:
        kind = Type.F32
    raw = quantize(stored, kind)
    writer.add_tensor(gguf_name(name, model_type), raw, raw_dtype=kind)
    if kind == Type.F32:
        return values
    back = dequantize(raw, kind).reshape(values.shape)
    if swap:
        count = config[heads[part]]
        pairs = back.reshape(count, -1, 2, *values.shape[1:])
        back = pairs.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(back, dtype=np.float32)


def write_metadata(writer: GGUFWriter, toy: Toy, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    for key, value in toy.metadata.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        if isinstance(value, str):
            writer.add_string(f"{toy.architecture}.{key}", value)
        elif isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
        else:
            add(f"{toy.architecture}.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_scores([-float(n) for n in range(len(TOKENS))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_folder(folder: Path, config: dict[str, Any], weights: Weights, shards: int = 1) -> Path:
    """An MLX model folder; with several shards there is an index."""
    from sgl_mlx.tokenizer import Tokenizer

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokens = {"model": "llama", "tokens": TOKENS, "token_type": KINDS}
    tokens |= {"scores": [-float(n) for n in range(len(TOKENS))]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}
    Tokenizer.from_gguf(metadata).backend.save(str(folder / "tokenizer.json"))
    names = sorted(weights)
    index = {}
    for n in range(shards):
        file = (
            "model.safetensors" if shards == 1 else f"model-{n + 1:05}-of-{shards:05}.safetensors"
        )
        part = {name: weights[name] for name in names[n::shards]}
        index |= dict.fromkeys(part, file)
        save_file(part, folder / file)
    if shards > 1:
        text = json.dumps({"weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


LLAMA = Toy("llama", "llama")


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    """A small llama in float32."""
    path = tmp_path / "toy.gguf"
    write_gguf(path, LLAMA, random_weights(LLAMA.full_config()))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same model as a folder."""
    config = LLAMA.full_config()
    return write_folder(tmp_path / "toy", config, random_weights(config))


@pytest.fixture
def write_toy(tmp_path: Path) -> Callable[[Toy, Type], tuple[Path, Path]]:
    """Write a toy as a GGUF file of some type and as a folder with the same numbers."""

    def write(toy: Toy, kind: Type) -> tuple[Path, Path]:
        config, path = toy.full_config(), tmp_path / "toy.gguf"
        seen = write_gguf(path, toy, random_weights(config), kind)
        return path, write_folder(tmp_path / "toy", config, seen)

    return write


@pytest.fixture
def toy_class() -> type[Toy]:
    return Toy


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A llama folder with changes to its configuration or shards."""

    def make(shards: int = 1, name: str = "made", **changes: Any) -> Path:
        config = LLAMA.full_config()
        weights = random_weights(config)
        return write_folder(tmp_path / name, {**config, **changes}, weights, shards)

    return make
