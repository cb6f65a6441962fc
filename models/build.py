"""Building a model of mlx-lm from a configuration and weights, with checks."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, dequantize_model, infer_quant_config

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError

_SHOWN = 5
"""Maximum number of weight names that an error lists."""


def model_classes(config: dict[str, Any]) -> tuple[type[nn.Module], Any]:
    """Find mlx-lm's model class and its arguments class for `config["model_type"]`.

    Raises:
        UnsupportedModelError: for an unknown architecture (the message names similar ones), or one
            that needs a package that is not installed.
    """
    model_type = config["model_type"]
    try:
        classes: tuple[type[nn.Module], Any] = _get_classes(config)
    except ValueError as e:
        known = sorted(module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
        near = difflib.get_close_matches(model_type, known, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise UnsupportedModelError(f"architecture {model_type!r} is not supported{hint}") from e
    except (ImportError, SystemExit) as e:  # mlx-lm's olmo ends the process without its package
        raise UnsupportedModelError(f"architecture {model_type!r} needs a package: {e}") from e
    return classes


def build(config: dict[str, Any], weights: dict[str, mx.array], source: str) -> nn.Module:
    """Build a model with these weights; a layer is quantized if its weights include scales.

    Args:
        source: the file or folder that errors name.

    Raises:
        UnsupportedModelError: as `model_classes`.
        CorruptModelError: for a configuration that the architecture rejects, and for weights that
            do not match it; the message lists up to five of these weights.
    """
    model_class, args_class = model_classes(config)
    try:
        model: nn.Module = model_class(args_class.from_dict(config))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as e:
        raise CorruptModelError(
            f"{source}: the configuration does not fit {config['model_type']}: {e}"
        ) from e
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    quantize_like(model, weights)
    check_weights(model, weights, source)
    model.eval()
    model.load_weights(list(weights.items()))
    return model


def quantize_like(model: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Quantize in place each layer that has scales in `weights`, with the same bits and groups."""

    def packing(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        how: dict[str, Any] = infer_quant_config(path, module, weights)
        return how

    if any(name.endswith(".scales") for name in weights):
        nn.quantize(model, class_predicate=packing)


def check_weights(model: nn.Module, weights: Mapping[str, mx.array], source: str) -> None:
    """Raise `CorruptModelError` unless `weights` has exactly the model's names and shapes."""
    expected = {name: tuple(p.shape) for name, p in tree_flatten(model.parameters())}
    given = {name: tuple(w.shape) for name, w in weights.items()}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    faults += [f"{name} has no place" for name in sorted(given.keys() - expected.keys())]
    faults += [
        f"{name} has shape {given[name]}, the configuration wants {expected[name]}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name] != given[name]
    ]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CorruptModelError(
            f"{source}: weights do not match the configuration: {'; '.join(faults[:_SHOWN])}{more}"
        )


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Dequantize every layer and convert all weights to `dtype`, in place and lazily."""
    dequantize_model(model)
    model.set_dtype(dtype)
