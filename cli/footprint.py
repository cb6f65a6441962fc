"""Memory that a model will take, from its headers: weights, and keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from sgl_mlx import machine
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.models import safetensors_file
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.gguf import config as gguf_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.info import describe
from sgl_mlx.runtime.pool.kv import KVPool


def footprint(path: Path, tokens: int, kv_bits: int | None = None) -> int:
    """Return the bytes of a model's weights and of a KV pool of `tokens` slots.

    Raises:
        KeyError: the configuration does not tell the size of the KV pool.
    """
    shapes, _ = kv_shape(read_config(path))
    return weight_bytes(path) + tokens * KVPool.bytes_per_slot(shapes, kv_dtype(), kv_bits)


def weight_bytes(path: Path) -> int:
    """Return the bytes that the weights will take on this machine."""
    if machine.on_gpu():
        return describe(path).weight_bytes()
    return describe(path).weight_bytes("float32", packed=open_cpu_kernels() is not None)


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a model folder or a GGUF file."""
    if path.is_dir():
        return safetensors_file.read_config(path)
    return gguf_config.read_config(GGUFFile(path))


def kv_shape(config: Mapping[str, Any]) -> tuple[list[LayerShape], int]:
    """Return the KV shape of each layer and the context length; KeyError if `config` lacks them."""
    config = config.get("text_config") or config
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    shape = LayerShape(config.get("num_key_value_heads") or heads, width, width)
    return [shape] * config["num_hidden_layers"], config["max_position_embeddings"]


def kv_dtype() -> mx.Dtype:
    """Return the type of keys and values on this machine."""
    return mx.bfloat16 if machine.on_gpu() else mx.float32
