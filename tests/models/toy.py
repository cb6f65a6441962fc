"""A random model of toy size for every architecture of the installed mlx-lm."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.bitlinear_layers import BitLinear

from tests.models.recurrent_configs import RECURRENT
from tests.models.toy_configs import NO_MODELS, SIZES, VARIANTS, Config

_NESTED = {
    "gemma3n": "TextConfig",
    "qwen3_5": "TextModelArgs",
    **dict.fromkeys(["kimi_k3", "llama4", "minimax_m3_vl"], "TextArgs"),
}
"""Architectures whose text configuration is another class than `ModelArgs`."""


def architectures() -> list[str]:
    """Modules of `mlx_lm.models` that define a model."""
    names = (module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
    return sorted(name for name in names if name not in NO_MODELS)


def toy_configs(architecture: str) -> list[Config]:
    """The configurations an architecture is checked with."""
    variants = (VARIANTS | RECURRENT).get(architecture, [{}])
    return [_filled(architecture, "ModelArgs", variant) for variant in variants]


def toy_config(architecture: str, variant: int = 0) -> Config:
    return toy_configs(architecture)[variant]


def _filled(architecture: str, class_name: str, given: Config) -> Config:
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    config: Config = {"model_type": architecture}
    for field in dataclasses.fields(getattr(module, class_name)):
        if field.name in given:
            config[field.name] = given[field.name]
        elif field.name in SIZES:
            config[field.name] = SIZES[field.name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            config[field.name] = _nothing(field)
    if "text_config" in given:
        text = given["text_config"]
        inner = text["arch"]
        config["text_config"] = _filled(inner, _NESTED.get(inner, "ModelArgs"), text)
    return {**config, "model_type": architecture}


def _nothing(field: dataclasses.Field[Any]) -> Any:
    """Value of a field without default that no table names: a flag off, an option not taken."""
    if field.type is bool:
        return False
    if type(None) in typing.get_args(field.type) or field.name == "model_type":
        return None
    raise KeyError(f"no toy value for {field.name}: {field.type}")


def toy_model(architecture: str, config: Config) -> nn.Module:
    """A model with seeded weights, in float32.

    Weights have a spread of 1.5 times the usual, so that attention is selective and the likeliest
    tokens are well apart.
    """
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    mx.random.seed(7)  # some recurrent layers draw their decay when they are made
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    key = mx.random.key(7)
    weights = []
    for name, parameter in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        weights.append((name, _random(parameter, own)))
    model.update(tree_unflatten(weights))
    for layer in model.modules():
        if type(layer) is BitLinear:
            layer.__class__ = PlainBitLinear
    model.eval()
    mx.eval(model.parameters())
    return model


class PlainBitLinear(BitLinear):  # type: ignore[misc]
    """bitnet's layer in plain MLX. A byte holds a weight of each quarter of the rows."""

    def execute_matmul_kernel(self, x: mx.array, packed_weights: mx.array) -> mx.array:
        quarters = [(packed_weights >> shift) & 3 for shift in (0, 2, 4, 6)]
        weights = mx.concatenate(quarters).astype(x.dtype) - 1
        scale = 1 / self.weight_scale if self.invert_weight_scales else self.weight_scale
        return x @ weights.T * scale


def _random(parameter: mx.array, key: mx.array) -> mx.array:
    if parameter.dtype in (mx.uint8, mx.uint32):  # packed weights
        return mx.random.randint(0, 2**31, parameter.shape, key=key).astype(parameter.dtype)
    if not mx.issubdtype(parameter.dtype, mx.floating):
        return parameter
    noise = mx.random.normal(parameter.shape, key=key)
    if parameter.ndim < 2:  # norms, biases, sinks
        return parameter.astype(mx.float32) + 0.2 * noise
    return 1.5 * noise / parameter.shape[-1] ** 0.5
