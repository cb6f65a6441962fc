"""Model configuration, as in a `config.json`, made from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl_mlx.errors import CorruptModelError, UnsupportedModelError
from sgl_mlx.models.gguf.file import GGUFFile

_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}


def read_config(file: GGUFFile) -> dict[str, Any]:
    """Make the configuration that the model's `config.json` would hold.

    Raises:
        UnsupportedModelError: for an architecture that is not supported, or a value that
            differs from layer to layer.
        CorruptModelError: when the file lacks a value or a tensor that the architecture needs.
    """
    values = _Metadata(file)
    model_type = values.model_type()
    hidden, heads = values.need("embedding_length"), values.need("attention.head_count")
    rotated = values.get("rope.dimension_count") or hidden // heads
    head_dim = values.get("attention.key_length") or (
        hidden // heads if model_type == "phi3" else rotated
    )
    config = {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": values.need("block_count"),
        "intermediate_size": values.get("feed_forward_length") or 0,
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "rms_norm_eps": values.need("attention.layer_norm_rms_epsilon"),
        "vocab_size": values.rows("token_embd.weight"),
        "max_position_embeddings": values.need("context_length"),
        "rope_theta": values.get("rope.freq_base") or 10000.0,
        "rope_scaling": _rope_scaling(values, file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    extra = _EXTRA.get(model_type)
    return {**config, **(extra(values, {**config, "rotated": rotated}) if extra else {})}


class _Metadata:
    """A GGUF file's metadata, read by key without the architecture's prefix.

    For example `get("block_count")` reads `llama.block_count`. Also gives the shapes of tensors.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.architecture = file.metadata.get("general.architecture")

    def model_type(self) -> str:
        if self.architecture not in _MODEL_TYPES:
            raise UnsupportedModelError(
                f"{self._file.path}: GGUF architecture {self.architecture!r} is not supported; "
                f"supported are {', '.join(_MODEL_TYPES)}"
            )
        is_mixtral = self.architecture == "llama" and self.get("expert_count")
        return "mixtral" if is_mixtral else _MODEL_TYPES[self.architecture]

    def get(self, key: str) -> Any:
        value = self._file.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UnsupportedModelError(
                    f"{self._file.path}: {self.architecture}.{key} differs from layer to layer"
                )
            return value[0]
        return value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if not value:
            fault = "missing" if value is None else value
            raise CorruptModelError(f"{self._file.path}: {self.architecture}.{key} is {fault}")
        return value

    def has(self, tensor: str) -> bool:
        return tensor in self._file.tensors

    def rows(self, tensor: str) -> int:
        if not self.has(tensor):
            raise CorruptModelError(f"{self._file.path} lacks the tensor {tensor}")
        return self._file.tensors[tensor].shape[0]


def _rope_scaling(values: _Metadata, file: GGUFFile) -> dict[str, Any] | None:
    """Read the rope scaling, from tensors (factors per frequency) or metadata; None if absent."""
    context = values.get("context_length")
    original = values.get("rope.scaling.original_context_length") or context
    if values.has("rope_freqs.weight"):  # llama 3: divisors of each frequency, no magnitude
        factors = file.floats("rope_freqs.weight").tolist()
        return _long_rope(factors, factors, context)
    if values.has("rope_factors_long.weight"):
        long, short = (file.floats(f"rope_factors_{n}.weight").tolist() for n in ("long", "short"))
        return _long_rope(long, short, original)
    kind, old = values.get("rope.scaling.type"), values.get("rope.scale_linear")
    if kind is None and old not in (None, 0, 1):  # as in files of 2023
        return {"type": "linear", "factor": float(old)}
    if kind in ("linear", "yarn"):
        factor = float(values.need("rope.scaling.factor"))
        return {"type": kind, "factor": factor, "original_max_position_embeddings": original}
    return None


def _long_rope(long: list[float], short: list[float], original: int) -> dict[str, Any]:
    return {
        "type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original,
    }


def _llama(values: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": values.has("blk.0.attn_q.bias"),
        "mlp_bias": values.has("blk.0.ffn_up.bias"),
    }


def _mixtral(values: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_local_experts": values.need("expert_count"),
        "num_experts_per_tok": values.need("expert_used_count"),
    }


def _qwen3_moe(values: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": values.need("expert_count"),
        "num_experts_per_tok": values.need("expert_used_count"),
        "moe_intermediate_size": values.need("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _phi3(values: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    context = config["max_position_embeddings"]
    original = values.get("rope.scaling.original_context_length")
    return {
        "partial_rotary_factor": config["rotated"] / config["head_dim"],
        "original_max_position_embeddings": original or context,
    }


def _gemma2(values: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": values.get("attn_logit_softcapping") or 50.0,
        "final_logit_softcapping": values.get("final_logit_softcapping") or 30.0,
        "query_pre_attn_scalar": _query_scalar(config, layers_of_27b=46),
    }


def _gemma3(values: _Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sliding_window": values.need("attention.sliding_window"),
        "query_pre_attn_scalar": _query_scalar(config, layers_of_27b=62),
    }


def _query_scalar(config: Mapping[str, Any], layers_of_27b: int) -> float:
    """Choose `query_pre_attn_scalar`, which GGUF lacks, as llama.cpp does.

    Models with `layers_of_27b` layers get `hidden_size / num_attention_heads`, all other models
    `head_dim`.
    """
    if config["num_hidden_layers"] == layers_of_27b:
        return float(config["hidden_size"] / config["num_attention_heads"])
    return float(config["head_dim"])


_EXTRA = {
    "llama": _llama,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
