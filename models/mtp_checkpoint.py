"""Weights of multi-token-prediction (MTP) heads in model folders, which mlx-lm drops.

Names of the weights, as vLLM and SGLang read them (`qwen3_5_mtp.py`, `deepseek_nextn.py`,
`glm4_moe_mtp.py`):

- qwen3_next, qwen3_5, qwen3_5_moe: `mtp.fc`, `mtp.pre_fc_norm_embedding`, `mtp.pre_fc_norm_hidden`,
  `mtp.norm` and the decoder layer `mtp.layers.0`.
- deepseek_v3, glm4_moe: one more decoder layer than `num_hidden_layers` says, which also has
  `eh_proj`, `enorm`, `hnorm` and `shared_head.norm`, and copies of the embedding and of the output
  layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.models import build, safetensors_file

QWEN = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_moe"})
DEEPSEEK = frozenset({"deepseek_v3", "glm4_moe"})
"""Architectures whose heads are named as DeepSeek's."""
ARCHITECTURES = QWEN | DEEPSEEK
NORM = "norm.weight"

_QWEN_JOINT = {
    "fc": "projection",
    "pre_fc_norm_embedding": "embedding_norm",
    "pre_fc_norm_hidden": "hidden_norm",
}
_DEEPSEEK_JOINT = {"eh_proj": "projection", "enorm": "embedding_norm", "hnorm": "hidden_norm"}
_DEEPSEEK_COPIES = ("embed_tokens.", "shared_head.head.", "self_attn.rotary_emb.")
_QWEN_NAME = re.compile(r"(?:^|\.)mtp\.(.+)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(?P<mlp>.*\bmlp)\.experts\.(?P<expert>\d+)\.(?P<kind>.+)")


class HeadWeights(NamedTuple):
    """Weights of an MTP head, under names that all architectures share.

    Attributes:
        joint: weights that join a token's embedding to the hidden state of the preceding token:
            `projection`, `embedding_norm` and `hidden_norm`.
        block: the decoder layer under the names of a model's layer, without `model.layers.0.`.
        norm: the norm before the output layer; empty if the checkpoint lacks it.
    """

    joint: dict[str, mx.array]
    block: dict[str, mx.array]
    norm: dict[str, mx.array]


def read_head(folder: Path, architecture: str, layers: int) -> HeadWeights | None:
    """Read a folder's MTP head lazily; return None if the folder has none.

    Of several heads the first is read.

    Args:
        architecture: module name of the model in `mlx_lm.models`.
        layers: `num_hidden_layers` of the configuration.

    Raises:
        ModelNotFoundError, CorruptModelError: as `safetensors_file.read_entries`.
    """
    name_of = _naming(architecture, layers)
    head = HeadWeights({}, {}, {})
    for file in safetensors_file.weight_files(folder):
        if not any(name_of(name) for name in safetensors_file.read_header(file)):
            continue
        loaded: Any = mx.load(str(file), return_metadata=True)
        weights, metadata = loaded
        shifted = architecture in DEEPSEEK or metadata.get("format") == "mlx"
        for name, weight in weights.items():
            place = name_of(name)
            if place is not None:
                part, own = place
                getattr(head, part)[own] = weight if shifted else _shifted(own, weight)
    if not any(head):
        return None
    return head._replace(block=_stack_experts(head.block))


def model_classes(config: dict[str, Any]) -> tuple[type[nn.Module], Any]:
    """Return the classes of `build.model_classes`, whose `sanitize` drops the weights of heads.

    mlx-lm's own `sanitize` drops the weights of DeepSeek's heads only after layer 60, and those of
    qwen3_next only in files that were not converted.
    """
    model_class: Any
    model_class, args_class = build.model_classes(config)
    architecture = model_class.__module__.rpartition(".")[2]
    if architecture not in ARCHITECTURES:
        return model_class, args_class
    text = config.get("text_config") or config
    layers = text.get("num_hidden_layers")

    def in_head(name: str) -> bool:
        if architecture in QWEN:
            return _QWEN_NAME.search(name) is not None
        found = _LAYER.match(name)
        return found is not None and isinstance(layers, int) and int(found[1]) >= layers

    def sanitize(self: Any, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept = model_class.sanitize(self, weights)
        return {name: weight for name, weight in kept.items() if not in_head(name)}

    own = {"__module__": model_class.__module__, "sanitize": sanitize}
    return type(model_class.__name__, (model_class,), own), args_class


Place = tuple[str, str]
"""A field of `HeadWeights`, and the weight's name in this field."""


def _naming(architecture: str, layers: int) -> Callable[[str], Place | None]:
    """Return a function from a weight's name to its place in the head; None for other weights."""
    if architecture in QWEN:
        return _qwen_place

    def deepseek_place(name: str) -> Place | None:
        found = _LAYER.match(name)
        if found is None or int(found[1]) != layers or found[2].startswith(_DEEPSEEK_COPIES):
            return None
        if found[2].startswith("shared_head.norm."):
            return "norm", found[2].removeprefix("shared_head.")
        return _place(found[2], _DEEPSEEK_JOINT) or ("block", found[2])

    return deepseek_place if architecture in DEEPSEEK else lambda _: None


def _qwen_place(name: str) -> Place | None:
    found = _QWEN_NAME.search(name)
    if found is None:
        return None
    own = found[1]
    layer = re.match(r"layers\.(\d+)\.(.+)", own)
    if layer is not None:
        return ("block", layer[2]) if layer[1] == "0" else None
    return ("norm", own) if own == NORM else _place(own, _QWEN_JOINT) or ("joint", own)


def _place(name: str, joint: Mapping[str, str]) -> Place | None:
    stem, _, kind = name.rpartition(".")
    return ("joint", f"{joint[stem]}.{kind}") if stem in joint else None


def _shifted(name: str, weight: mx.array) -> mx.array:
    """Add 1 to a norm's weight: Qwen's own files store norms around 0, MLX's files around 1."""
    return weight + 1 if weight.ndim == 1 and name.endswith(".weight") else weight


def _stack_experts(block: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Stack weights of single experts as mlx-lm's `switch_mlp` expects them."""
    stacked: dict[str, mx.array] = {}
    experts: dict[str, dict[int, mx.array]] = {}
    for name, weight in block.items():
        found = _EXPERT.fullmatch(name)
        if found is None or name.endswith("_scale_inv") or f"{name}_scale_inv" in block:
            stacked[name] = weight
        else:
            name = f"{found['mlp']}.switch_mlp.{found['kind']}"
            experts.setdefault(name, {})[int(found["expert"])] = weight
    for name, parts in experts.items():
        stacked[name] = mx.stack([parts[i] for i in sorted(parts)])
    return stacked
