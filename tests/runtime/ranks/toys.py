"""Folders of toys of the architectures that mlx-lm can divide among ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from tests.models.conftest import TOKENS, write_folder
from tests.models.toy import toy_config, toy_model

EIGHT_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def write_toy(folder: Path, architecture: str, **changes: Any) -> Path:
    """A toy in the first configuration of an architecture; one with `changes`, if there are any."""
    config = toy_config(architecture)
    names = {"vocab_size": len(TOKENS), **changes}
    if "text_config" in config:
        config = config | {"text_config": config["text_config"] | names}
    config |= names
    return _write(folder, config, toy_model(architecture, config))


def write_quantized_toy(folder: Path) -> Path:
    """A llama in 4 bits, whose layers two ranks can divide."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = toy_config("llama") | sizes | {"vocab_size": len(TOKENS)}
    model = toy_model("llama", config)
    how = {"group_size": 32, "bits": 4}
    nn.quantize(model, **how)
    return _write(folder, config | {"quantization": how}, model)


def _write(folder: Path, config: dict[str, Any], model: nn.Module) -> Path:
    weights = tree_flatten(model.parameters())
    return write_folder(folder, config, {name: np.array(x) for name, x in weights})
