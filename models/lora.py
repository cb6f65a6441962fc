"""LoRA adapters: low-rank additions to a model; all its other weights are shared.

Source of the method: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from sgl_mlx.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.models.lora_layers import adapted_layer

_MLX = ("adapters.safetensors", ".lora_a", ".lora_b")
_PEFT = ("adapter_model.safetensors", ".lora_A.weight", ".lora_B.weight")
_PEFT_PREFIX = "base_model.model."

Pair = tuple[mx.array, mx.array]
"""A `(in, rank)` and B `(rank, out)` of a layer."""


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter read from disk: low-rank additions, by the name of the layer.

    Attributes:
        pairs: A `(in, rank)` and B `(rank, out)` of each layer.
        scale: factor of the additions.
        path: folder that the adapter was read from.
    """

    pairs: Mapping[str, Pair]
    scale: float
    path: Path

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for pair in self.pairs.values() for array in pair)


def read_adapter(folder: str | Path) -> LoraAdapter:
    """Read an adapter that mlx-lm or PEFT has written.

    Args:
        folder: has `adapter_config.json`, and `adapters.safetensors` (mlx-lm) or
            `adapter_model.safetensors` (PEFT).

    Raises:
        ModelNotFoundError: a file is missing.
        UnsupportedModelError: the adapter is of another kind than LoRA.
        CorruptModelError: the files do not hold pairs of matrices.
    """
    path = Path(folder).expanduser()
    settings = _settings(path)
    kind = str(settings.get("fine_tune_type") or settings.get("peft_type") or "lora").lower()
    if kind != "lora" or settings.get("use_dora"):
        raise UnsupportedModelError(f"{path}: an adapter of the kind {kind}; only LoRA runs")
    peft = (path / _PEFT[0]).exists()
    name, end_a, end_b = _PEFT if peft else _MLX
    try:
        weights = mx.load(str(path / name))
    except (RuntimeError, ValueError) as error:
        kind_of = CorruptModelError if (path / name).exists() else ModelNotFoundError
        raise kind_of(f"{path}: {name} cannot be read: {error}") from error
    assert isinstance(weights, dict)
    pairs = {}
    for key in weights:
        if not key.endswith(end_a):
            continue
        stem = key.removesuffix(end_a)
        if stem + end_b not in weights:
            raise CorruptModelError(f"{path}: {name} has {key} without its pair {stem + end_b}")
        a, b = weights[key], weights[stem + end_b]
        pairs[stem.removeprefix(_PEFT_PREFIX)] = (a.T, b.T) if peft else (a, b)
    if not pairs:
        raise CorruptModelError(f"{path}: {name} holds no pairs *{end_a}, *{end_b}")
    return LoraAdapter(pairs, _scale(path, settings, peft), path)


def with_adapter(loaded: LoadedModel, adapter: LoraAdapter, name: str) -> LoadedModel:
    """Return a copy of `loaded` with the adapter added; both share all other weights.

    Args:
        name: name of the new model.

    Raises:
        CorruptModelError: a named layer is missing or not linear, or its matrices do not fit.
    """
    model = _copied(loaded.model, {})
    layers = dict(model.named_modules())
    check(adapter, layers, loaded.name)
    dtype = _dtype(loaded.model)
    pairs = {name: (a.astype(dtype), b.astype(dtype)) for name, (a, b) in adapter.pairs.items()}
    mx.eval(list(pairs.values()))  # here: other threads will read them
    adapted = [(n, adapted_layer(layers[n], *pair, adapter.scale)) for n, pair in pairs.items()]
    model.update_modules(tree_unflatten(adapted))
    return replace(
        loaded,
        model=model,
        name=name,
        fingerprint=f"{loaded.fingerprint} {_digest(adapter.path)}",
        weight_bytes=loaded.weight_bytes + adapter.nbytes,
    )


def check(adapter: LoraAdapter, layers: Mapping[str, nn.Module], model: str) -> None:
    """Check that an adapter is one of a model with these layers, which are found by name.

    Args:
        model: the model, for errors.

    Raises:
        CorruptModelError: a named layer is missing or not linear, or its matrices do not fit.
    """
    for name, (a, b) in adapter.pairs.items():
        base = layers.get(name)
        if base is None or isinstance(base, nn.Embedding):
            raise CorruptModelError(f"{adapter.path}: {model} has no linear layer {name}")
        if not _fits(base, a, b):
            raise CorruptModelError(
                f"{adapter.path}: {name} is given matrices of {tuple(a.shape)} and "
                f"{tuple(b.shape)}, which do not fit it"
            )


def _settings(path: Path) -> dict[str, Any]:
    file = path / "adapter_config.json"
    try:
        settings = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ModelNotFoundError(f"{path} is no adapter: {error}") from error
    except ValueError as error:
        raise CorruptModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CorruptModelError(f"{file} must hold a JSON object, found {type(settings).__name__}")
    return settings


def _scale(path: Path, settings: Mapping[str, Any], peft: bool) -> float:
    """Return the factor of the additions: mlx-lm's `scale`, or PEFT's `lora_alpha / r`."""
    try:
        if not peft:
            return float(settings["lora_parameters"]["scale"])
        rank = float(settings["r"])
        rank = rank**0.5 if settings.get("use_rslora") else rank
        return float(settings["lora_alpha"]) / rank
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CorruptModelError(f"{path}: adapter_config.json tells no scale: {error}") from error


def _copied(module: Any, made: dict[int, Any]) -> Any:
    """Copy a tree of modules, lists and dictionaries; arrays and all else are shared."""
    if not isinstance(module, (nn.Module, list, dict)):
        return module
    if id(module) not in made:
        made[id(module)] = new = copy.copy(module)
        items = enumerate(module) if isinstance(module, list) else list(module.items())
        for key, value in items:
            new[key] = _copied(value, made)
    return made[id(module)]


def _dtype(model: nn.Module) -> mx.Dtype:
    """Return the type that the model computes in: the type of its norms."""
    found = [
        value
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for value in module.values()
        if isinstance(value, mx.array)
    ]
    return found[0].dtype if found else mx.float32


def _fits(base: nn.Module, a: mx.array, b: mx.array) -> bool:
    """Return True if A `(in, rank)` and B `(rank, out)` fit a linear layer."""
    if not a.ndim == b.ndim == 2 or a.shape[1] != b.shape[0]:
        return False
    try:
        y = adapted_layer(base, a, b, 1.0)(mx.zeros((1, len(a)), a.dtype))  # nothing is computed
    except ValueError:
        return False
    return bool(y.shape[-1] == b.shape[1])


def _digest(path: Path) -> str:
    """Hash an adapter's files, which may lie under other paths on other machines."""
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "adapter_config.json"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
