"""Headers of safetensors files and model folders, read without reading any weight.

The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sgl_mlx.errors import CorruptModelError, ModelNotFoundError

_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000
_INSTEAD = {
    "*.gguf": "give a GGUF file, such as {}",
    "snapshots/*/config.json": "give the folder of {}",
    "*/config.json": "give the folder of {}",
    "adapter_config.json": "{} belongs to a LoRA adapter: give its base model, and serve --adapter",
    "*.bin": "{} is in PyTorch's format: convert it with mlx_lm.convert",
}
"""Advice for folders without `config.json`, by what they hold instead."""


@dataclass(frozen=True)
class WeightEntry:
    """One tensor of a file: type as the format spells it, such as BF16; shape; and bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def count(self) -> int:
        return prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """List the `model*.safetensors` files of a folder, checked against its index if it has one.

    Raises:
        ModelNotFoundError: when the folder has no such file.
        CorruptModelError: when shards that the index lists are missing; the message names them.
    """
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("model*.safetensors"))
    if index.is_file():
        listed = set(read_json(index).get("weight_map", {}).values())
        missing = sorted(listed - {file.name for file in files})
        if missing:
            raise CorruptModelError(
                f"{folder} lacks {len(missing)} of the {len(listed)} shards in {index.name}: "
                f"{', '.join(missing)}"
            )
    if not files:
        raise ModelNotFoundError(f"{folder} holds no model*.safetensors")
    return files


def read_entries(folder: Path) -> dict[str, WeightEntry]:
    """Read the entries of all tensors in a folder's weight files, by tensor name.

    Raises:
        ModelNotFoundError, CorruptModelError: as `weight_files` and `read_header`.
    """
    entries: dict[str, WeightEntry] = {}
    for file in weight_files(folder):
        entries.update(read_header(file))
    return entries


def read_header(path: Path) -> dict[str, WeightEntry]:
    """Read the entries of all tensors in one file, by tensor name.

    Raises:
        CorruptModelError: when the file is no safetensors file or ends before its last tensor.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 2 <= size <= min(_MAX_HEADER, length - _LENGTH_BYTES):
            raise CorruptModelError(f"{path} is truncated or no safetensors file: no header")
        raw = file.read(size)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {name: _entry(name, **declared) for name, declared in header.items()}
        end = max((declared["data_offsets"][1] for declared in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise CorruptModelError(f"{path} has a broken safetensors header: {e}") from e
    due = _LENGTH_BYTES + size + end
    if due > length:
        raise CorruptModelError(
            f"{path} is truncated: its tensors end at byte {due:,}, the file at {length:,}"
        )
    return entries


def _entry(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> WeightEntry:
    begin, end = data_offsets
    entry = WeightEntry(dtype, tuple(shape), end - begin)
    bits = int(next(iter(re.findall(r"\d+", dtype)), 8))  # BF16, F8_E4M3, U32, …, and BOOL
    if begin < 0 or entry.size * 8 != entry.count * bits:
        raise ValueError(f"{name} is {dtype} of shape {entry.shape} in {entry.size} bytes")
    return entry


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's `config.json`.

    Raises:
        ModelNotFoundError: when the folder has no `config.json`.
        CorruptModelError: when the file is no JSON object or has no `model_type`.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(
            f"{folder} is no model folder: it has no config.json{_meant(folder)}"
        )
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise CorruptModelError(f"{path} has no model_type, which names the architecture")
    return config


def _meant(folder: Path) -> str:
    """Return what a folder without `config.json` has instead, for an error; "" if nothing."""
    for pattern, advice in _INSTEAD.items():
        if found := sorted(folder.glob(pattern)):
            return "; " + advice.format(found[0])
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; raises `CorruptModelError` if it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise CorruptModelError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise CorruptModelError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value
