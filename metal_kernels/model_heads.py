"""Attention heads of well-known models, to test and tune kernels without loading a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlx.core as mx

from sgl_mlx.metal_kernels.selftest import Case


@dataclass(frozen=True)
class Heads:
    """Attention heads of one model; `windows` of its layers, None for full attention."""

    heads: int
    kv_heads: int
    dim: int
    windows: tuple[int | None, ...] = (None,)
    sinks: bool = False
    capped: bool = False


MODELS = {
    "smollm2-135m": Heads(9, 3, 64),
    "llama-3-8b": Heads(32, 8, 128),
    "qwen3-4b": Heads(32, 8, 128),
    "gemma-2-9b": Heads(16, 8, 256, capped=True),
    "gemma-3-4b": Heads(8, 4, 256, (None, 1024)),
    "llava-1.5-7b": Heads(32, 32, 128),
    "gpt-oss-20b": Heads(64, 8, 64, (None, 128), sinks=True),
}

DTYPES = (mx.bfloat16, mx.float16, mx.float32)


def cases(model: str, dtype: mx.Dtype = mx.bfloat16, quantized: bool = False) -> Iterator[Case]:
    """List the cases that the runtime asks of the kernels for a model of `MODELS`."""
    heads = MODELS[model]
    plain = Case("extend", heads.heads, heads.kv_heads, heads.dim, dtype, quantized)
    plain = replace(plain, sinks=heads.sinks, capped=heads.capped)
    for window in heads.windows:
        for work in ("extend", "decode"):
            yield replace(plain, work=work, window=window)


def all_cases() -> list[Case]:
    """List each case once: every model in every dtype, over a full and an 8-bit pool."""
    return list(
        dict.fromkeys(
            case
            for model in MODELS
            for dtype in DTYPES
            for quantized in (False, True)
            for case in cases(model, dtype, quantized)
        )
    )
