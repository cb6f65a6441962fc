"""Size of a model's weights and KV pool in memory, computed from the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from sgl_mlx import machine
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.models import safetensors_file
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.build import model_classes
from sgl_mlx.models.gguf import config as gguf_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.info import describe
from sgl_mlx.models.shards import layers_of_rank, share
from sgl_mlx.runtime.pool.kv import KVPool


def pool_bytes(
    path: Path,
    tokens: int,
    kv_bits: int | None = None,
    ranks: int = 1,
    whole_layers: bool = False,
) -> int:
    """Return the bytes of a KV pool of `tokens` slots, on each of several ranks.

    Args:
        whole_layers: as for `shards.divide`.

    Raises:
        KeyError, TypeError: the configuration lacks a field that gives the size of the KV pool.
        UnsupportedModelError: the architecture does not run.
    """
    adapter, _ = adapter_of(read_config(path))
    layers = layers_of_rank(adapter.layers, ranks, whole_layers)
    return tokens * KVPool.bytes_per_slot(layers, kv_dtype(), kv_bits)


def weight_bytes(path: Path, ranks: int = 1, whole_layers: bool = False) -> int:
    """Return the bytes that the weights will take on this machine, one of several ranks.

    Args:
        whole_layers: as for `shards.divide`.
    """
    model = describe(path)
    part = share(read_config(path), model.parameters, ranks, whole_layers)
    if machine.on_gpu():
        return int(part * model.weight_bytes())
    return int(part * model.weight_bytes("float32", packed=open_cpu_kernels() is not None))


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a model folder or a GGUF file."""
    if path.is_dir():
        return safetensors_file.read_config(path)
    return gguf_config.read_config(GGUFFile(path))


def adapter_of(config: Mapping[str, Any]) -> tuple[Adapter, int]:
    """Return an adapter for a model without loaded weights, and the context length in tokens.

    Raises:
        KeyError, TypeError: `config` lacks a field.
        UnsupportedModelError: the architecture does not run.
    """
    config = dict(config.get("text_config") or config)
    context = config["max_position_embeddings"]
    model_class, args_class = model_classes(config)
    return adapter_for(model_class(args_class.from_dict(config))), context


def kv_dtype() -> mx.Dtype:
    """Return the type of unquantized keys and values on this machine."""
    return mx.bfloat16 if machine.on_gpu() else mx.float32
