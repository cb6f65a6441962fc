"""A model as a folder in MLX's format, for peers that load nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from sgl_mlx.models.loader import load


def mlx_folder(model: str | None, folder: Path) -> str:
    """The model itself if it is a folder, else `folder`, filled with the weights that we run.

    They are dequantized exactly as our engine does, so that both sides have the same.
    """
    loaded = load(model)
    if loaded.path.is_dir():
        return str(loaded.path)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(loaded.model.parameters())),
        {"format": "mlx"},
    )
    (folder / "config.json").write_text(json.dumps(loaded.config))
    loaded.tokenizer.backend.save(str(folder / "tokenizer.json"))
    end = loaded.tokenizer.token_text(min(loaded.tokenizer.eos_token_ids))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)
