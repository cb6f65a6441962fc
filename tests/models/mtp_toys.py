"""Toy models with multi-token-prediction (MTP) heads, in folders as their makers publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from sgl_mlx.models.trunk import trunk_of
from tests.models.conftest import TOKENS, Weights, write_folder
from tests.models.toy import toy_config, toy_model

Array = NDArray[np.float32]

WITH_HEADS = ["qwen3_5", "qwen3_5_moe", "qwen3_next", "deepseek_v3", "glm4_moe"]
NAMED_AS_DEEPSEEK = ("deepseek_v3", "glm4_moe")
_QWEN = {
    "fc.weight": "projection",
    "pre_fc_norm_embedding.weight": "norm",
    "pre_fc_norm_hidden.weight": "norm",
    "norm.weight": "norm",
}
_DEEPSEEK = {
    "eh_proj.weight": "projection",
    "enorm.weight": "norm",
    "hnorm.weight": "norm",
    "shared_head.norm.weight": "norm",
}


def config_of(architecture: str, **sizes: int) -> dict[str, Any]:
    """The toy configuration, with the vocabulary of the toy tokenizer and with other `sizes`."""
    config = toy_config(architecture)
    text = config.get("text_config", config)
    text.update(sizes)
    text["vocab_size"] = len(TOKENS)
    text["tie_word_embeddings"] = False
    text[_COUNT if architecture in NAMED_AS_DEEPSEEK else "mtp_num_hidden_layers"] = 1
    return config


_COUNT = "num_nextn_predict_layers"


def prefix_of(architecture: str, config: dict[str, Any]) -> str:
    """The beginning of the names of a published head's weights."""
    text = config.get("text_config", config)
    after = f"model.layers.{text['num_hidden_layers']}."
    return after if architecture in NAMED_AS_DEEPSEEK else "mtp."


def random_head(architecture: str, model: nn.Module) -> Weights:
    """Random weights of a head under published names, without their prefix.

    The layer has the shapes of the model's last layer; norms are stored as they are used.
    """
    draw = np.random.default_rng(3)
    layer = trunk_of(model).layers[-1]
    width = trunk_of(model).norm.weight.shape[0]
    shapes = {name: p.shape for name, p in tree_flatten(layer.parameters())}
    deepseek = architecture in NAMED_AS_DEEPSEEK
    if architecture == "deepseek_v3":
        up, out = shapes.pop("self_attn.embed_q.weight"), shapes["self_attn.unembed_out.weight"]
        del shapes["self_attn.unembed_out.weight"]
        heads, rank, nope = up
        shapes["self_attn.kv_b_proj.weight"] = (heads * (nope + out[1]), rank)
    for name in [name for name in shapes if ".switch_mlp." in name]:
        experts, *shape = shapes.pop(name)
        for i in range(experts):
            shapes[name.replace("switch_mlp", f"experts.{i}")] = tuple(shape)
    block = "" if deepseek else "layers.0."
    shapes = {f"{block}{name}": shape for name, shape in shapes.items()}
    for name, kind in (_DEEPSEEK if deepseek else _QWEN).items():
        shapes[name] = (width,) if kind == "norm" else (width, 2 * width)
    return {name: _random(shape, draw) for name, shape in shapes.items()}


def _random(shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    if len(shape) == 1:
        return (1 + 0.2 * draw.normal(size=shape)).astype(np.float32)
    return (1.5 * draw.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)


def agreeing_toy(architecture: str) -> tuple[nn.Module, Weights]:
    """A model whose next token hangs mostly on the last one, and a head that knows that.

    All that the model's layers add to the embedding is small, and its likeliest tokens are well
    apart. The head's projection passes on the embedding alone, and its layer adds nothing. So it
    guesses right often, but not always.
    """
    model = toy_model(architecture, config_of(architecture))
    trunk = trunk_of(model)
    ends = ("o_proj.weight", "out_proj.weight", "down_proj.weight")
    small = [
        (name, p * _SHARE if name.endswith(ends) else p)
        for name, p in tree_flatten(trunk.parameters())
    ]
    trunk.load_weights(small)
    holder = getattr(model, "language_model", model)
    holder.lm_head.weight = holder.lm_head.weight * _DECIDED
    head = random_head(architecture, model)
    width = trunk.norm.weight.shape[0]
    for name in head:
        if name.endswith(ends):
            head[name] *= 0
        elif name in ("fc.weight", "eh_proj.weight"):
            head[name] = np.eye(width, 2 * width, dtype=np.float32)
        elif name in ("enorm.weight", "pre_fc_norm_embedding.weight"):
            head[name] = np.ones(width, np.float32)
        elif name in ("shared_head.norm.weight", "norm.weight"):
            head[name] = np.array(trunk.norm.weight)
    return model, head


_DECIDED = 6
_SHARE = 0.01


def published(architecture: str, config: dict[str, Any], head: Weights) -> Weights:
    """A head's weights as published: with prefix, and Qwen's norms around 0."""
    prefix = prefix_of(architecture, config)
    lower = 0 if architecture in NAMED_AS_DEEPSEEK else 1
    return {
        f"{prefix}{name}": weight - lower if weight.ndim == 1 else weight
        for name, weight in head.items()
    }


def write_toy(
    folder: Path,
    architecture: str,
    head: Weights | None,
    model: nn.Module | None = None,
    **sizes: int,
) -> tuple[Path, nn.Module]:
    """Write a toy with a published head, or without; return the folder and the model.

    Args:
        model: the model to write; None for a random one.
        sizes: as for `config_of`.
    """
    config = config_of(architecture, **sizes)
    model = model or toy_model(architecture, config)
    weights = {name: np.array(p) for name, p in tree_flatten(model.parameters())}
    if head is not None:
        weights |= published(architecture, config, head)
    return write_folder(folder, config, weights), model


def hidden_of(model: nn.Module, tokens: list[int]) -> mx.array:
    """The model's hidden states after each token `(tokens, width)`, before the output layer."""
    hidden: mx.array = trunk_of(model)(mx.array([tokens]))[0]
    return hidden


def write_random(folder: Path, architecture: str) -> Path:
    """Write a toy and a head with random weights; return the folder."""
    model = toy_model(architecture, config_of(architecture))
    return write_toy(folder, architecture, random_head(architecture, model))[0]


def write_agreeing(folder: Path, architecture: str) -> Path:
    """Write an `agreeing_toy`; return the folder."""
    model, head = agreeing_toy(architecture)
    return write_toy(folder, architecture, head, model)[0]
