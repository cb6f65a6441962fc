"""MLA modules: one entry a token, and two ways to attend to it that agree."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.metal_kernels.reference import softmax_attention
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.cpu_layers import use_kernels
from sgl_mlx.models.latents import Expansion
from tests.models.conformance import check, reference, uncompiled
from tests.models.toy import toy_config, toy_model

MLA = [
    *("deepseek_v2", "deepseek_v3", "kimi_k25", "kimi_vl", "glm4_moe_lite", "mistral4"),
    *("longcat_flash", "minicpm3", "youtu_llm"),
]
KINDS = ["deepseek_v2", "deepseek_v3"]
"""One whose modules make keys and values in one layer, and one with a layer for each."""

TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
WIDE = {"kv_lora_rank": 64, "hidden_size": 64, "q_lora_rank": 64, "intermediate_size": 64}
WIDE |= {"moe_intermediate_size": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
"""Widths that quantized groups of 64 divide."""


def toy(architecture: str, **changes: Any) -> Any:
    return toy_model(architecture, toy_config(architecture) | changes)


def expansion_of(model: nn.Module) -> Expansion:
    Adapter(model)
    found: Expansion = model.layers[0].self_attn.expansion
    return found


@pytest.mark.parametrize("architecture", MLA)
def test_a_layer_keeps_one_entry_for_all_heads(architecture: str) -> None:
    adapter = Adapter(toy(architecture))
    config = adapter.model.args if hasattr(adapter.model, "args") else adapter.model.config
    text = getattr(config, "text_config", config)
    rank, rope = text.kv_lora_rank, text.qk_rope_head_dim
    assert {(x.heads, x.key_dim, x.value_dim) for x in adapter.layers} == {(1, rank + rope, rank)}
    assert all(x.values_in_keys for x in adapter.layers)


def attend_both_ways(expansion: Expansion, tokens: int, length: int) -> tuple[mx.array, mx.array]:
    """One sequence's last tokens, absorbed and expanded."""
    wide = expansion.nope + expansion.rope
    queries = mx.random.normal((tokens, expansion.heads, wide), key=mx.random.key(tokens))
    entries = mx.random.normal(
        (length, 1, expansion.rank + expansion.rope), key=mx.random.key(length)
    )
    options = AttentionOptions(wide**-0.5)
    latent = entries[..., : expansion.rank]
    absorbed = softmax_attention(expansion.absorb(queries), entries, latent, options)
    return expansion.project(absorbed), softmax_attention(
        queries, *expansion.expand(entries), options
    )


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    widths=st.tuples(*[st.sampled_from([2, 4, 6])] * 3),
    heads=st.integers(1, 5),
    tokens=st.integers(1, 6),
    before=st.integers(0, 9),
)
def test_absorbed_and_expanded_attention_agree(
    kind: str, widths: tuple[int, int, int], heads: int, tokens: int, before: int
) -> None:
    nope, rope, value = widths
    changes = {"qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": value}
    changes |= {"num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": 1}
    expansion = expansion_of(toy(kind, **changes))
    assert expansion.widths == (heads, 16, nope, rope, value)
    absorbed, expanded = attend_both_ways(expansion, tokens, tokens + before)
    assert mx.allclose(absorbed, expanded, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_matrices_give_what_their_numbers_give(kind: str, bits: int) -> None:
    model = toy(kind, **WIDE)
    nn.quantize(model, group_size=64, bits=bits)
    packed = attend_both_ways(expansion_of(model), 3, 7)
    assert mx.allclose(*packed, atol=1e-3)
    with uncompiled():
        check(Adapter(model))


def test_matrices_packed_for_the_cpu_kernels_serve_too(cpu_kernels: ModuleType) -> None:
    model = toy("minicpm3", **WIDE, dim_model_base=64)
    nn.quantize(model, group_size=64, bits=4)
    use_kernels(model, cpu_kernels)
    with uncompiled():
        check(Adapter(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_still_runs_as_mlx_lm_does_once_adapted(kind: str) -> None:
    before = reference(toy(kind), TOKENS)
    model = toy(kind)
    Adapter(model)
    Adapter(model)
    assert mx.array_equal(reference(model, TOKENS), before)
    names = [name for name, _ in nn.utils.tree_flatten(model.parameters())]
    assert names == [name for name, _ in nn.utils.tree_flatten(toy(kind).parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_absorbing_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Expansion.absorb
    monkeypatch.setattr(Expansion, "absorb", lambda self, queries: right(self, queries * 1.01))
    with uncompiled(), pytest.raises(AssertionError, match="differ from mlx-lm"):
        check(Adapter(toy(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_half_precision(kind: str) -> None:
    model = toy(kind, num_hidden_layers=1)
    model.set_dtype(mx.bfloat16)
    expansion = expansion_of(model)
    entries = mx.zeros((3, 1, expansion.rank + expansion.rope), mx.bfloat16)
    assert {x.dtype for x in expansion.expand(entries)} == {mx.bfloat16}
    assert Adapter(model).dtype == mx.bfloat16
