"""A small llama with random weights, whose tokens are words of four letters and bytes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tests.models.conftest import LLAMA, random_weights

VOCABULARY = 1024
WORDS = ["".join(x) for x in itertools.product("bdfk", "aeo", "lmn", "aeo")][:80]
END = "<|end|>"


def word_tokenizer() -> Tokenizer:
    """Byte-level, as most are; each word is one token, at the start and after a space."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


def write_toy(folder: Path) -> Path:
    """A folder in MLX's format."""
    folder.mkdir()
    tokenizer = word_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    config: dict[str, Any] = {
        **LLAMA.full_config(),
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "eos_token_id": end,
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(random_weights(config), folder / "model.safetensors", metadata={"format": "mlx"})
    return folder
