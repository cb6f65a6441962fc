"""Attention heads of well-known models, to test and tune kernels without loading a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import mlx.core as mx

from sgl_mlx.metal_kernels.selftest import Case


@dataclass(frozen=True)
class Heads:
    """Attention heads of one kind of layer; the fields are those of `selftest.Case`."""

    heads: int
    kv_heads: int
    dim: int
    window: int | None = None
    sinks: bool = False
    capped: bool = False
    value_dim: int | None = None
    values_in_keys: bool = False


MODELS: dict[str, tuple[Heads, ...]] = {
    "smollm2-135m": (Heads(9, 3, 64),),
    "llama-3-8b": (Heads(32, 8, 128),),
    "qwen3-4b": (Heads(32, 8, 128),),
    "gemma-2-9b": (Heads(16, 8, 256, capped=True),),
    "gemma-3-4b": (Heads(8, 4, 256), Heads(8, 4, 256, window=1024)),
    "gemma-4-e2b": (Heads(8, 1, 256, window=512), Heads(8, 1, 512)),
    "llava-1.5-7b": (Heads(32, 32, 128),),
    "gpt-oss-20b": (Heads(64, 8, 64, sinks=True), Heads(64, 8, 64, window=128, sinks=True)),
    "mimo-v2-flash": (
        Heads(64, 4, 192, value_dim=128),
        Heads(64, 8, 192, window=128, sinks=True, value_dim=128),
    ),
    "deepseek-v2-lite": (Heads(16, 1, 576, value_dim=512, values_in_keys=True),),
}
"""Attention heads of each kind of layer, by model; for DeepSeek, of absorbed MLA."""

WORKS: tuple[Literal["extend", "decode"], ...] = "extend", "decode"
DTYPES = (mx.bfloat16, mx.float16, mx.float32)


def cases(model: str, dtype: mx.Dtype = mx.bfloat16, quantized: bool = False) -> Iterator[Case]:
    """Yield the kernel specialisations that the runtime needs for a model of `MODELS`."""
    for kind in MODELS[model]:
        for work in WORKS:
            yield Case(work, dtype=dtype, quantized=quantized, **asdict(kind))


def all_cases() -> list[Case]:
    """List, without repeats, the specialisations of all models, dtypes, and pools (full, 8-bit)."""
    return list(
        dict.fromkeys(
            case
            for model in MODELS
            for dtype in DTYPES
            for quantized in (False, True)
            for case in cases(model, dtype, quantized)
        )
    )
