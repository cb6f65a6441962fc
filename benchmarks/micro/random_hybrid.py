"""A hybrid model with random weights on disk: three gated delta nets to one layer of attention.

It has the widths of a small real model, and four layers. A step costs as much as one of a trained
model of this size.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3_next import Model, ModelArgs
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCABULARY = 20480
CONFIG = {
    "model_type": "qwen3_next",
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "linear_num_value_heads": 16,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 0,
    "num_experts_per_tok": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 0,
    "shared_expert_intermediate_size": 0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
QUANTIZATION = {"group_size": 64, "bits": 4}


def write(folder: Path) -> Path:
    """Write configuration, weights in 4 bits and a tokenizer; return `folder`."""
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(CONFIG))
    nn.quantize(model, **QUANTIZATION)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization": QUANTIZATION}))
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer() -> Tokenizer:
    """Return a tokenizer that encodes text as single bytes.

    Numbered words, which encoding never yields, fill the rest of the vocabulary: a model with
    random weights may write any token.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{n}" for n in range(VOCABULARY - len(letters))]
    ids = {token: i for i, token in enumerate([*letters, *words])}
    tokenizer = Tokenizer(BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
