"""Description of a model on disk from its headers, without reading weights or importing mlx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType as Type

from sgl_mlx.models import safetensors_file
from sgl_mlx.models.gguf import config as gguf_config
from sgl_mlx.models.gguf.blocks import GROUP_SIZE, REPACKABLE
from sgl_mlx.models.gguf.file import GGUFFile, TensorEntry
from sgl_mlx.models.safetensors_file import WeightEntry

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DEFAULT_GROUP = 64
_GGUF_FLOATS = {Type.F32: 4, Type.F16: 2, Type.BF16: 2}
_PACKABLE_BITS = (4, 8)
"""Bits per weight that the CPU kernels multiply packed; see `cpu_kernels.packing.fits`."""


@dataclass(frozen=True)
class ModelInfo:
    """Architecture, quantization and sizes of a model.

    Attributes:
        layers: number of layers; None if the configuration does not say.
        parameters: number of weights, each counted once whether quantized or not.
        context_length: most positions the model takes; None if the configuration does not say.
        disk_bytes: size of the tensors on disk.
        native_bytes: size of the weights in memory when loaded in their stored types. A GGUF
            file's quantized types other than Q4_0, Q4_1, Q4_K and Q8_0 are widened to 8 bits.
        packed_bytes: size in memory when loaded as float32 with 4- and 8-bit weights kept packed.
    """

    path: str
    format: str
    architecture: str
    layers: int | None
    parameters: int
    quantization: str
    context_length: int | None
    disk_bytes: int
    native_bytes: int
    packed_bytes: int

    def weight_bytes(self, dtype: str | None = None, packed: bool = False) -> int:
        """Estimate the memory that the weights take, in bytes.

        Args:
            dtype: type that all weights are converted to, such as "float32"; None keeps them as
                stored.
            packed: True returns `packed_bytes`, whatever `dtype` is.
        """
        if packed:
            return self.packed_bytes
        return self.native_bytes if dtype is None else self.parameters * _FLOAT_BYTES[dtype]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(path: str | Path) -> ModelInfo:
    """Describe architecture, size and quantization of a GGUF file or a model folder.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError: for a missing, broken or
            unsupported model, as when loading it.
    """
    path = Path(path)
    if not path.is_dir():
        return describe_gguf(GGUFFile(path))
    config = safetensors_file.read_config(path)
    return describe_folder(path, config, safetensors_file.read_entries(path))


def estimate_weight_bytes(path: str | Path, dtype: str | None = None, packed: bool = False) -> int:
    """Estimate the memory that a model's weights take, in bytes; see `ModelInfo.weight_bytes`."""
    return describe(path).weight_bytes(dtype, packed)


def describe_gguf(file: GGUFFile) -> ModelInfo:
    """Describe an open GGUF file."""
    config = gguf_config.read_config(file)
    tensors = file.tensors.values()
    by_type = Counter[str]()
    for entry in tensors:
        by_type[entry.type.name] += prod(entry.shape)
    matrices = {entry.type for entry in tensors if len(entry.shape) > 1}
    only = next(iter(matrices)) if len(matrices) == 1 else None
    native = _GGUF_FLOATS.get(only, 2) if only is not None else 2
    return ModelInfo(
        path=str(file.path),
        format="GGUF",
        architecture=config["model_type"],
        layers=config["num_hidden_layers"],
        parameters=sum(by_type.values()),
        quantization=by_type.most_common(1)[0][0],
        context_length=config["max_position_embeddings"],
        disk_bytes=sum(entry.size for entry in tensors),
        native_bytes=sum(_gguf_bytes(entry, native, 2, pack_all=True) for entry in tensors),
        packed_bytes=sum(_gguf_bytes(entry, 4, 4, pack_all=False) for entry in tensors),
    )


def _gguf_bytes(entry: TensorEntry, plain: int, scale: int, pack_all: bool) -> int:
    """Count the bytes that one GGUF tensor takes in memory.

    Args:
        plain: bytes of a number that is not packed.
        scale: bytes of a group's scale; its bias takes as many.
        pack_all: True counts blocks that cannot be repacked as 8-bit groups, False as plain
            numbers.
    """
    count = prod(entry.shape)
    packable = entry.type in REPACKABLE or (pack_all and entry.type not in _GGUF_FLOATS)
    if len(entry.shape) < 2 or not packable:
        return count * plain
    four = entry.type in REPACKABLE and entry.type != Type.Q8_0
    return count // (2 if four else 1) + 2 * scale * (count // GROUP_SIZE)


def with_vision(info: ModelInfo, parameters: int, disk_bytes: int) -> ModelInfo:
    """Add to `info` the sizes of a vision part stored in separate files; it is never packed."""
    return replace(
        info,
        parameters=info.parameters + parameters,
        disk_bytes=info.disk_bytes + disk_bytes,
        native_bytes=info.native_bytes + disk_bytes,
        packed_bytes=info.packed_bytes + parameters * _FLOAT_BYTES["float32"],
    )


def describe_folder(
    path: Path, config: Mapping[str, Any], entries: Mapping[str, WeightEntry]
) -> ModelInfo:
    """Describe a model folder by its `config.json` and the headers of its safetensors files."""
    text = config.get("text_config") or config
    disk = sum(entry.size for entry in entries.values())
    return ModelInfo(
        path=str(path),
        format="safetensors",
        architecture=config["model_type"],
        layers=text.get("num_hidden_layers"),
        parameters=_count_parameters(config, entries),
        quantization=_quantization(config, entries),
        context_length=text.get("max_position_embeddings"),
        disk_bytes=disk,
        native_bytes=disk,
        packed_bytes=_packed_bytes(config, entries),
    )


def _packed_bytes(config: Mapping[str, Any], entries: Mapping[str, WeightEntry]) -> int:
    """Count the bytes of a folder's weights as float32 in memory.

    Quantized weights stay packed if the CPU kernels can multiply them.
    """
    total = 0
    for name, entry in entries.items():
        stem, _, kind = name.rpartition(".")
        scales = entries.get(f"{stem}.scales")
        if scales is None or kind not in ("weight", "scales", "biases"):
            total += 4 * entry.count
        elif _is_packable(config, entries, stem):
            total += entry.size if kind == "weight" else 4 * entry.count
        elif kind == "weight":
            total += 4 * scales.count * _group_size(config, stem)
    return total


def _is_packable(config: Mapping[str, Any], entries: Mapping[str, WeightEntry], stem: str) -> bool:
    weight, scales = entries.get(f"{stem}.weight"), entries[f"{stem}.scales"]
    if weight is None or f"{stem}.biases" not in entries:  # not affine groups
        return False
    group = _group_size(config, stem)
    bits = 8 * weight.size // (scales.count * group)
    return bits in _PACKABLE_BITS and group % GROUP_SIZE == 0


def _quantization(config: Mapping[str, Any], entries: Mapping[str, WeightEntry]) -> str:
    how = config.get("quantization") or config.get("quantization_config")
    if how:
        return f"{how['bits']}-bit" if "bits" in how else str(how.get("quant_method"))
    by_type = Counter[str]()
    for entry in entries.values():
        by_type[entry.dtype] += entry.size
    return by_type.most_common(1)[0][0] if by_type else "none"


def _count_parameters(config: Mapping[str, Any], entries: Mapping[str, WeightEntry]) -> int:
    """Count parameters; a quantized weight has as many as its scales times its group size."""
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
    """Look up a layer's group size; layers with their own settings are listed by name."""
    how = config.get("quantization") or config.get("quantization_config") or {}
    own = how.get(layer)
    default: int = how.get("group_size", _DEFAULT_GROUP)
    return own.get("group_size", default) if isinstance(own, dict) else default
