"""A draft model cut from a model: its first layers, embeddings and output layer, untrained."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from sgl_mlx.errors import BenchmarkError
from sgl_mlx.models.loader import load


def write_truncated(model: str | Path | None, layers: int, folder: Path) -> None:
    """Write the first `layers` layers of a model as an MLX folder, in float32.

    Args:
        model: as for `models.loader.load`.
        folder: an existing folder.

    Raises:
        BenchmarkError: the model does not have more than `layers` layers, or its configuration does
            not say how many it has.
        ModelError: the model cannot be loaded.
    """
    loaded = load(model, dtype="float32")
    all_layers = loaded.config.get("num_hidden_layers")
    if not isinstance(all_layers, int) or not 0 < layers < all_layers:
        raise BenchmarkError(f"cannot cut {loaded.name} to {layers} layers: it has {all_layers}")
    dropped = tuple(f".layers.{i}." for i in range(layers, all_layers))
    weights = {
        name: value
        for name, value in tree_flatten(loaded.model.parameters())
        if not any(part in f".{name}" for part in dropped)
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    ends = sorted(loaded.tokenizer.eos_token_ids)
    config = {**loaded.config, "num_hidden_layers": layers, "eos_token_id": ends}
    config.pop("quantization", None)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    loaded.tokenizer.backend.save(str(folder / "tokenizer.json"))
