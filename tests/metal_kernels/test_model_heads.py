"""Kernels that the runtime asks for with well-known models: their exact text, and results."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.metal_kernels import model_heads
from sgl_mlx.metal_kernels.build import Kernels, read
from sgl_mlx.metal_kernels.dispatch import ALWAYS_OURS
from sgl_mlx.metal_kernels.selftest import Case, both_ways, compare
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row
from tests.metal_kernels.emulator import Emulator, needs_compiler
from tests.models.toy import toy_config, toy_model

EVERY_RUN = {
    *(case for model in model_heads.MODELS for case in model_heads.cases(model)),
    *model_heads.cases("llama-3-8b", mx.float16, quantized=True),
    *model_heads.cases("smollm2-135m", mx.float32),
}
"""Models in their usual dtype, an 8-bit pool, and what the embedded model runs in here."""

CASES = [
    pytest.param(case, id=str(case), marks=() if case in EVERY_RUN else pytest.mark.whole_grid)
    for case in model_heads.all_cases()
]


def compiled_by_mlx(case: Case) -> list[str]:
    """Texts that MLX itself would hand to Apple's compiler for a case, kernel by kernel."""
    traced: list[dict[str, Any]] = []
    mx.export_function(traced.append, lambda _: both_ways(case, Kernels()), mx.array(0))
    return [p["arguments"][1] for p in traced if p.get("name") == "CustomKernel"]


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_the_text_mlx_would_compile_is_right_in_the_emulator(case: Case) -> None:
    emulator = Emulator()
    good, seen = compare(case, Kernels(emulator.metal_kernel))
    assert good, f"{case}: {seen}"
    texts = [launch.msl.text for launch in emulator.launches]
    assert texts == compiled_by_mlx(case)
    assert all(read("attention.h") in text for text in texts)
    assert all(len(launch.msl.buffers) <= 31 for launch in emulator.launches)


ARCHITECTURES = {
    "smollm2-135m": "llama",
    "llama-3-8b": "llama",
    "qwen3-4b": "qwen3",
    "gemma-2-9b": "gemma2",
    "gemma-3-4b": "gemma3_text",
    "gemma-4-e2b": "gemma4_text",
    "llava-1.5-7b": "llama",
    "gpt-oss-20b": "gpt_oss",
    "mimo-v2-flash": "mimo_v2_flash",
    "deepseek-v2-lite": "deepseek_v2",
}
"""Models with their architecture."""


def config_of(name: str) -> dict[str, Any]:
    """A configuration of toy width with the layers of a known model, one of each kind."""
    kinds = model_heads.MODELS[name]
    windowed = [kind.window is not None for kind in kinds]
    full = next((kind for kind in kinds if kind.window is None), kinds[0])
    sliding = next((kind for kind in kinds if kind.window is not None), full)
    config = {
        **toy_config(ARCHITECTURES[name]),
        **{"num_attention_heads": full.heads, "num_key_value_heads": full.kv_heads},
        **{"head_dim": full.dim, "num_hidden_layers": len(kinds)},
        **{"sliding_window": sliding.window, "sliding_window_pattern": len(kinds)},
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed],
    }
    if name == "gemma-4-e2b":
        config |= {"head_dim": sliding.dim, "global_head_dim": full.dim, "num_kv_shared_layers": 0}
    if name == "deepseek-v2-lite":
        rank = full.value_dim or 0
        config |= {"kv_lora_rank": rank, "qk_rope_head_dim": full.dim - rank}
        config |= {"num_key_value_heads": full.heads}
    if name == "mimo-v2-flash":
        config |= {
            **{"v_head_dim": full.value_dim, "swa_v_head_dim": sliding.value_dim},
            **{"swa_head_dim": sliding.dim, "swa_num_attention_heads": sliding.heads},
            **{"swa_num_key_value_heads": sliding.kv_heads, "sliding_window_size": sliding.window},
            **{"hybrid_layer_pattern": [int(w) for w in windowed], "moe_layer_freq": [0, 0]},
            **{"add_full_attention_sink_bias": full.sinks},
        }
    return config


def model_with_heads_of(name: str) -> Adapter:
    """A model of toy width, whose layers attend as those of a known one: one layer a kind.

    In its usual dtype, but for experts, which MLX multiplies on the CPU in float32 alone.
    """
    model = toy_model(ARCHITECTURES[name], config_of(name))
    if name != "gpt-oss-20b":
        model.set_dtype(mx.bfloat16)
    return Adapter(model)


def row(name: str, prefix: range, slots: range, tokens: int) -> Row:
    return Row(
        id=name,
        tokens=tuple(range(tokens)),
        prefix=tuple(prefix),
        slots=tuple(slots),
        position=len(prefix),
        sample=True,
        params=SamplingParams(temperature=0),
    )


@needs_compiler
@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_runner_compiles_no_text_but_these(name: str, kv_bits: int | None) -> None:
    adapter, emulator = model_with_heads_of(name), Emulator()
    pool = KVPool(adapter.layers, 80, adapter.dtype, kv_bits)
    guarded = TestedKernels(Kernels(emulator.metal_kernel), force=True)
    runner = ModelRunner(adapter, pool, frozenset(), AttentionPaths(pool, guarded, ALWAYS_OURS))
    prefix = range(1, 67, 2)  # scattered: one ascending run alone would be sliced
    forks = tuple(row(n, prefix, range(at, at + 2), 1) for n, at in (("a", 70), ("b", 72)))
    runner.run(Extend((row("a", range(0), prefix, len(prefix)),)))
    runner.run(Extend((*forks, row("c", prefix, range(74, 77), 3))))
    for opening in (forks, forks[:1]):  # with something shared, and without
        runner.run(Decode(tuple(r.id for r in opening), 2, ahead=False, opening=opening))
    cases = list(model_heads.cases(name, adapter.dtype, quantized=kv_bits == 8))
    assert set(guarded.verdicts) == set(cases)
    texts = {text for case in cases for text in compiled_by_mlx(case)}
    assert {launch.msl.text for launch in emulator.launches} == texts
