"""Describing a model on disk from its headers: no weight is read, no mlx imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from sgl_mlx.models import safetensors_file
from sgl_mlx.models.gguf import config as gguf_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.safetensors_file import WeightEntry

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DEFAULT_GROUP = 64


@dataclass(frozen=True)
class ModelInfo:
    """Architecture and sizes in bytes; `parameters` counts the numbers, quantized or not."""

    path: str
    format: str
    architecture: str
    layers: int | None
    parameters: int
    quantization: str
    context_length: int | None
    disk_bytes: int

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Estimate the weights' bytes in memory: as stored, or all as `dtype` ("float32", …)."""
        return self.disk_bytes if dtype is None else self.parameters * _FLOAT_BYTES[dtype]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(path: str | Path) -> ModelInfo:
    """Describe architecture, size and quantization of a GGUF file or a model folder.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError: as for loading it.
    """
    path = Path(path)
    return describe_folder(path) if path.is_dir() else describe_gguf(GGUFFile(path))


def estimate_weight_bytes(path: str | Path, dtype: str | None = None) -> int:
    """Estimate the weights' bytes in memory: as stored, or all as `dtype` ("float32", …)."""
    return describe(path).weight_bytes(dtype)


def describe_gguf(file: GGUFFile) -> ModelInfo:
    """Describe a GGUF file that is open already."""
    config = gguf_config.read_config(file)
    by_type = Counter[str]()
    for entry in file.tensors.values():
        by_type[entry.type.name] += prod(entry.shape)
    return ModelInfo(
        path=str(file.path),
        format="GGUF",
        architecture=config["model_type"],
        layers=config["num_hidden_layers"],
        parameters=sum(by_type.values()),
        quantization=by_type.most_common(1)[0][0],
        context_length=config["max_position_embeddings"],
        disk_bytes=sum(entry.size for entry in file.tensors.values()),
    )


def with_vision(info: ModelInfo, parameters: int, disk_bytes: int) -> ModelInfo:
    """Add the sizes of a vision part that is stored apart."""
    return replace(
        info, parameters=info.parameters + parameters, disk_bytes=info.disk_bytes + disk_bytes
    )


def describe_folder(path: Path) -> ModelInfo:
    """Describe a model folder."""
    config = safetensors_file.read_config(path)
    entries = safetensors_file.read_entries(path)
    text = config.get("text_config") or config
    return ModelInfo(
        path=str(path),
        format="safetensors",
        architecture=config["model_type"],
        layers=text.get("num_hidden_layers"),
        parameters=_count_parameters(config, entries),
        quantization=_quantization(config, entries),
        context_length=text.get("max_position_embeddings"),
        disk_bytes=sum(entry.size for entry in entries.values()),
    )


def _quantization(config: Mapping[str, Any], entries: Mapping[str, WeightEntry]) -> str:
    how = config.get("quantization") or config.get("quantization_config")
    if how:
        return f"{how['bits']}-bit" if "bits" in how else str(how.get("quant_method"))
    by_type = Counter[str]()
    for entry in entries.values():
        by_type[entry.dtype] += entry.size
    return by_type.most_common(1)[0][0] if by_type else "none"


def _count_parameters(config: Mapping[str, Any], entries: Mapping[str, WeightEntry]) -> int:
    """Count parameters; a quantized weight has group-size numbers for each scale."""
    total = 0
    for name, entry in entries.items():
        stem, _, kind = name.rpartition(".")
        scales = entries.get(f"{stem}.scales")
        if scales is None or kind not in ("weight", "scales", "biases"):
            total += entry.count
        elif kind == "weight":
            total += scales.count * _group_size(config, stem)
    return total


def _group_size(config: Mapping[str, Any], layer: str) -> int:
    """Look up a layer's group size; mlx-lm lists layers that differ under their own name."""
    how = config.get("quantization") or config.get("quantization_config") or {}
    own = how.get(layer)
    default: int = how.get("group_size", _DEFAULT_GROUP)
    return own.get("group_size", default) if isinstance(own, dict) else default
