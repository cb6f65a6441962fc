"""Weights of a GGUF file of the llama family, with mlx-lm's names and order of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from numpy.typing import NDArray

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.gguf.blocks import GROUP_SIZE, REPACKABLE, repack
from sgl_mlx.models.gguf.file import GGUFFile

_FLOATS = {Type.F32: mx.float32, Type.F16: mx.float16, Type.BF16: mx.bfloat16}

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_OF = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "gemma2": _SANDWICH_NORMS,
    "gemma3_text": _SANDWICH_NORMS,
    "mixtral": {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.switch_mlp.gate_proj",
        "ffn_up_exps": "block_sparse_moe.switch_mlp.up_proj",
        "ffn_down_exps": "block_sparse_moe.switch_mlp.down_proj",
    },
}


_NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_REQUANTIZED_BITS = 8
_PARTS = ("weight", "scales", "biases")

_Order = NDArray[np.intp] | None
"""Order in which a matrix's rows are taken; None keeps the order of the file."""


def read_weights(
    file: GGUFFile, config: Mapping[str, Any], dtype: mx.Dtype | None, pack: bool = False
) -> dict[str, mx.array]:
    """Read every weight of the model, by mlx-lm's name.

    Args:
        config: what `read_config` made of the file.
        dtype: type that weights are dequantized and converted to. None keeps weights quantized:
            types in `REPACKABLE` with their bits, other quantized types requantized to 8 bits.
        pack: with a `dtype`, True still keeps types in `REPACKABLE` quantized.

    Raises:
        UnsupportedModelError: for a tensor that no layer of the architecture has.
    """
    weights: dict[str, mx.array] = {}
    native = native_float(file)
    for name, entry in file.tensors.items():
        if name in _NOT_WEIGHTS:
            continue
        target = weight_name(name, config["model_type"])
        order = _row_order(name, file, config)
        packed = len(entry.shape) > 1 and (
            entry.type not in _FLOATS if dtype is None else pack and entry.type in REPACKABLE
        )
        if packed:
            parts = _packed(file, name, order)
            stem = target.removesuffix(".weight")
            found = {f"{stem}.{n}": part for n, part in zip(_PARTS, parts, strict=True)}
        else:
            values = _shifted(name, config, _floats(file, name, order))
            found = {target: values.astype(dtype or native)}
        mx.eval(found)  # at once, else the unpacked forms of all tensors are in memory together
        weights.update(found)
    return weights


def weight_name(name: str, model_type: str) -> str:
    """Translate a GGUF tensor's name to mlx-lm's.

    For example `blk.3.attn_q.weight` → `….layers.3.self_attn.q_proj.weight`.

    Raises:
        UnsupportedModelError: for a tensor that `model_type` does not have.
    """
    layers = {**_LAYER, **_LAYER_OF.get(model_type, {})}
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in layers:
        return f"model.layers.{match[1]}.{layers[match[2]]}.{match[3]}"
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    raise UnsupportedModelError(f"GGUF tensor {name} has no counterpart in {model_type}")


def native_float(file: GGUFFile) -> mx.Dtype:
    """Choose the type of weights that are not quantized.

    It is the type of all matrices if they share one float type, else float16.
    """
    kinds = {e.type for e in file.tensors.values() if len(e.shape) > 1}
    return _FLOATS[kinds.pop()] if len(kinds) == 1 and kinds <= set(_FLOATS) else mx.float16


def _packed(file: GGUFFile, name: str, order: _Order) -> list[mx.array]:
    """Read a tensor as weight, scales and biases of MLX's affine quantization."""
    kind = file.tensors[name].type
    if kind in REPACKABLE:
        return [mx.array(part) for part in repack(_reordered(file.blocks(name), order), kind)]
    values = _floats(file, name, order).astype(mx.float16)
    return list(mx.quantize(values, group_size=GROUP_SIZE, bits=_REQUANTIZED_BITS))


def _floats(file: GGUFFile, name: str, order: _Order) -> mx.array:
    """Read a tensor as float32, through MLX's packing where that is faster."""
    entry = file.tensors[name]
    if entry.type not in REPACKABLE:
        return mx.array(_reordered(file.floats(name), order))
    weight, scales, biases = _packed(file, name, order)
    bits = 32 * weight.shape[-1] // entry.shape[-1]
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)


def _row_order(name: str, file: GGUFFile, config: Mapping[str, Any]) -> _Order:
    """Compute the order that undoes llama.cpp's interleaving of the rows of q and k.

    llama.cpp's converter interleaves these rows for the `llama` architecture only, since its rope
    rotates rows 2i and 2i + 1 together; mlx-lm (like Hugging Face) rotates rows i and i + d / 2 of
    a head. Returns None for every other tensor.
    """
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    part = name.split(".")[-2]
    if config["model_type"] not in ("llama", "mixtral") or part not in heads:
        return None
    rows = np.arange(file.tensors[name].shape[0])
    pairs = rows.reshape(config[heads[part]], -1, 2)
    order: NDArray[np.intp] = pairs.swapaxes(1, 2).reshape(-1)
    return order


def _reordered(rows: NDArray[Any], order: _Order) -> NDArray[Any]:
    return rows if order is None else rows[order]


def _shifted(name: str, config: Mapping[str, Any], values: mx.array) -> mx.array:
    """Subtract one from gemma's norm weights; GGUF stores them increased by one, unlike mlx-lm."""
    is_gemma_norm = config["model_type"].startswith("gemma") and name.endswith("norm.weight")
    return values - 1 if is_gemma_norm else values
