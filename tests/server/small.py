"""A small random llama with the embedded model's tokenizer and room for 64,000 tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sgl_mlx.models.loader import load
from tests.server.scripted import CHATML

CONTEXT = 64_000


def small_model(name: str) -> Any:
    """Return the embedded model with its weights replaced by those of a small random llama."""
    import mlx.core as mx  # after sgl_mlx, which loads a fast BLAS before it
    from mlx_lm.models import llama

    loaded = load("smollm2")
    config = {
        **loaded.config,
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
    }
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    loaded.tokenizer.chat_template = CHATML
    return replace(loaded, model=model, config=config, name=name)
