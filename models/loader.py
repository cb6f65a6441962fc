"""Loading a model by name or path: weights, configuration, tokenizer and vision part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from sgl_mlx import machine
from sgl_mlx.blas import load_fast_blas
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.models import build, memory
from sgl_mlx.models.cpu_layers import use_kernels
from sgl_mlx.models.deepstack import add_to_layers
from sgl_mlx.models.info import ModelInfo
from sgl_mlx.models.packed_layers import dequantize_others
from sgl_mlx.models.pooling import Pooling
from sgl_mlx.models.resolve import resolve
from sgl_mlx.models.shards import divide, share
from sgl_mlx.models.source import Parts, open_source
from sgl_mlx.models.vision.model import VisionModel
from sgl_mlx.models.vision.qwen.config import read_sections
from sgl_mlx.models.vision.qwen.model import QwenVision
from sgl_mlx.models.vision.qwen.rope import turn_by_grids
from sgl_mlx.tokenizer import Tokenizer

_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: mlx-lm's module; its parameters are evaluated.
        config: the language model's `config.json`, or its equivalent made from GGUF metadata.
        name: the name given by the user, or that of the file or folder.
        path: the GGUF file or the model folder.
        fingerprint: hash of the configuration, the type of the weights, and each weight file's
            size, first and last 64 KiB.
        weight_bytes: memory that the weights take, vision part included.
        vision: turns pictures into features; None if the model takes no pictures.
        pooling: how embeddings are made; None for a model that only generates text.
    """

    model: nn.Module
    config: dict[str, Any]
    tokenizer: Tokenizer
    name: str
    path: Path
    fingerprint: str
    weight_bytes: int
    vision: VisionModel | None = None
    pooling: Pooling | None = None


def load(
    model: str | Path | None = None,
    *,
    offline: bool | None = None,
    dtype: str | None = None,
    available: int | None = None,
    mmproj: str | Path | None = None,
    group: mx.distributed.Group | None = None,
    whole_layers: bool = False,
) -> LoadedModel:
    """Find (`resolve`), check and load a model. Call it on the thread that will run the model.

    Args:
        model, offline: as for `resolve`.
        dtype: "float32", "float16" or "bfloat16" dequantizes and converts all weights. "native"
            keeps the stored types. None means "native" on a GPU. On a CPU None means float32;
            quantized layers stay quantized if `cpu_kernels` can multiply them, else they are
            dequantized for BLAS.
        available: bytes of available memory; None asks the machine.
        mmproj: the vision part for a language model that is a GGUF file. It is a GGUF file too,
            or a LLaVA folder, whose language model is not read.
        group: the ranks among which the weights are divided; None loads all of them.
        whole_layers: True if each rank keeps some layers whole; see `shards.divide`.

    Raises:
        ModelNotFoundError, CorruptModelError, TokenizerError, UnsupportedModelError: for a
            missing, broken or unsupported file; the message says which and how.
        MemoryLimitError: if the weights do not fit; raised before any weight is read.
        BackendError: if MLX has no device on this machine.
        ValueError: for an unknown `dtype`.
    """
    name, path = resolve(model, offline=offline)
    machine.check_device()
    kind = _resolve_dtype(dtype)
    target = None if kind is None else getattr(mx, kind)
    kernels = _kernels() if dtype is None and target is not None else None
    source = open_source(path, None if mmproj is None else Path(mmproj).expanduser())
    info = source.info
    part = 1.0
    if group is not None:
        part = share(source.config, info.parameters, group.size(), whole_layers)
    _check_memory(name, info, kind, available, kernels is not None, part)
    parts = source.load(target, kernels is not None)
    if group is not None:
        divide(parts.model, parts.config, group, name, whole_layers)
    if target is not None:
        _settle(parts.model, target, kernels)
    vision = parts.vision
    if isinstance(vision, QwenVision) and not _join_qwen(parts, vision, path):
        vision = None
    modules = [parts.model] if vision is None else [parts.model, vision.network]
    mx.eval([_arrays(module) for module in modules])
    return LoadedModel(
        model=parts.model,
        config=parts.config,
        tokenizer=parts.tokenizer,
        name=name,
        path=path,
        fingerprint=_fingerprint(source.files, parts.config, f"{kind} {kernels is None}"),
        weight_bytes=sum(p.nbytes for m in modules for _, p in tree_flatten(m.parameters())),
        vision=vision,
        pooling=source.pooling(parts),
    )


def _arrays(model: nn.Module) -> list[mx.array]:
    """List all arrays of a model, also those that are no parameters (rotary frequencies).

    All are computed when the model is loaded. MLX cannot compute a lazy array on another thread
    than the one that made it, and engines on threads of their own may share the model.
    """
    found = tree_flatten([dict(module) for module in model.modules()])
    return [x for _, x in found if isinstance(x, mx.array)]


def _resolve_dtype(dtype: str | None) -> str | None:
    if dtype not in (None, "native", "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype must be native, float32, float16 or bfloat16, got {dtype!r}")
    if dtype is None:
        return None if machine.on_gpu() else "float32"
    return None if dtype == "native" else dtype


def _kernels() -> ModuleType | None:
    """Load a fast BLAS, and return the CPU kernels; None if they were not compiled."""
    load_fast_blas()  # loaded already, unless mlx was imported before sgl_mlx: then it warns
    return open_cpu_kernels()


def _check_memory(
    name: str,
    info: ModelInfo,
    dtype: str | None,
    available: int | None,
    packed: bool,
    part: float,
) -> None:
    """Raise `MemoryLimitError` if `part` (0 to 1) of the weights does not fit in memory."""
    kind = f"{info.quantization} in float32" if packed else dtype or info.quantization
    how = f"{info.parameters / 1e6:,.0f} M parameters as {kind}"
    if part < 1:
        how = f"{part:.0%} (this rank's share) of {how}"
    limit = memory.available_bytes() if available is None else available
    memory.check_fits(name, int(part * info.weight_bytes(dtype, packed)), limit, how)


def _settle(model: nn.Module, dtype: mx.Dtype, kernels: ModuleType | None) -> None:
    """Convert the model to `dtype`, in place, and put its layers on the CPU kernels, if any.

    Quantized layers that the kernels can multiply stay quantized; all other layers are dequantized.
    """
    if kernels is None:
        build.cast(model, dtype)
    else:
        dequantize_others(model)
        model.set_dtype(dtype)
        use_kernels(model, kernels)


def _join_qwen(parts: Parts, vision: QwenVision, path: Path) -> bool:
    """Prepare a language model for the features and positions of pictures, in place.

    Returns True; False for rotary positions that cannot turn by rows and columns (`turn_by_grids`).
    """
    add_to_layers(parts.model, len(vision.config.deep))
    source = str(path / "config.json")
    return turn_by_grids(parts.model, read_sections(parts.config, source), source)


def _fingerprint(files: Sequence[Path], config: Mapping[str, Any], dtype: str) -> str:
    """Hash configuration, `dtype`, and the size, first and last 64 KiB of every weight file."""
    digest = hashlib.sha256(json.dumps([config, dtype], sort_keys=True, default=str).encode())
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(-min(size, _SAMPLE_BYTES), os.SEEK_END)
            digest.update(stream.read())
    return digest.hexdigest()[:16]
