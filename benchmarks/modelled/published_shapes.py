"""Fields of the configurations that well-known models were published with (their `config.json`)."""

from __future__ import annotations

from typing import NamedTuple

MLC = "mlc-ai/mlc-llm at 79d603f, python/mlc_llm/model/model_preset.py"
LITGPT = "Lightning-AI/litgpt at 2685705, litgpt/config.py"


class Published(NamedTuple):
    """Fields of one `config.json` that say how much a token's keys and values take.

    Attributes:
        source: a public repository, its commit and the file that repeats the configuration.
        model_type: the architecture.
        num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads: as published.
        head_dim: width of a head as published; None if the model's file does not have the field.
    """

    source: str
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None

    @property
    def width(self) -> int:
        """Width of a head's keys and of its values."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


PUBLISHED: dict[str, Published] = {
    "SmolLM2-135M": Published(MLC, "llama", 30, 576, 9, 3),
    "Qwen2.5-0.5B": Published(LITGPT, "qwen2", 24, 896, 14, 2),
    "Qwen3-0.6B": Published(MLC, "qwen3", 28, 1024, 16, 8, 128),
    "Llama-3.2-1B": Published(MLC, "llama", 16, 2048, 32, 8, 64),
    "Gemma-2-2B": Published(MLC, "gemma2", 26, 2304, 8, 4, 256),
    "Llama-3.2-3B": Published(MLC, "llama", 28, 3072, 24, 8, 128),
    "Phi-3.5-mini": Published(MLC, "phi3", 32, 3072, 32, 32),
    "Qwen3-4B": Published(LITGPT, "qwen3", 36, 2560, 32, 8, 128),
    "Qwen2.5-7B": Published(LITGPT, "qwen2", 28, 3584, 28, 4),
    "Mistral-7B-v0.3": Published(MLC, "mistral", 32, 4096, 32, 8),
    "Llama-3.1-8B": Published(MLC, "llama", 32, 4096, 32, 8),
    "Qwen3-8B": Published(LITGPT, "qwen3", 36, 4096, 32, 8, 128),
    "Gemma-2-9B": Published(MLC, "gemma2", 42, 3584, 16, 8, 256),
    "Phi-4 (14B)": Published(LITGPT, "phi3", 40, 5120, 40, 10),
    "Qwen3-14B": Published(LITGPT, "qwen3", 40, 5120, 40, 8, 128),
    "Qwen3-30B-A3B": Published(LITGPT, "qwen3_moe", 48, 2048, 32, 4, 128),
    "Qwen2.5-32B": Published(LITGPT, "qwen2", 64, 5120, 40, 8),
    "Mixtral-8x7B": Published(MLC, "mixtral", 32, 4096, 32, 8),
    "Llama-3.1-70B": Published(MLC, "llama", 80, 8192, 64, 8),
}
