"""Recurrent layers on a ragged step: states and logits are mlx-lm's own, however work is cut."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import ArraysCache, CacheList, make_prompt_cache

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.state_cache import StateCache
from sgl_mlx.models.states import RowStates
from tests.models.conformance import TOLERANCE, reference, uncompiled
from tests.models.sequences import Branch, extend, fresh
from tests.models.toy import toy_config, toy_model
from tests.models.toy_configs import VOCABULARY

KINDS = ["qwen3_next", "lfm2", "nemotron_h", "falcon_h1", "bailing_moe_linear", "mamba", "rwkv7"]
"""Gated delta, short convolution, SSD, state beside attention, GLA, and no attention at all."""


@cache
def adapter_of(architecture: str) -> Adapter:
    return Adapter(toy_model(architecture, toy_config(architecture)))


def error_of(branch: Branch, tokens: list[int], model: Any) -> float:
    """Largest difference from mlx-lm's log-probabilities, relative to their spread."""
    mine = mx.concatenate(branch.logits)
    mine = mine - mx.logsumexp(mine, axis=-1, keepdims=True)
    theirs = reference(model, [tokens])
    return float(mx.max(mx.abs(mine - theirs)) / (mx.max(theirs) - mx.min(theirs)))


def states_of(model: Any, tokens: list[int]) -> list[mx.array]:
    """The arrays that mlx-lm's own caches hold after these tokens."""
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([tokens]), cache=caches))
    parts = [p for c in caches for p in (c.caches if isinstance(c, CacheList) else [c])]
    return [array for p in parts if isinstance(p, ArraysCache) for array in p.cache]


@pytest.mark.parametrize("architecture", KINDS)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
)
@uncompiled()
def test_any_chunks_in_any_batch_give_mlx_lms_own_logits_and_states(
    architecture: str, lengths: list[int], seed: int
) -> None:
    adapter, draw = adapter_of(architecture), random.Random(seed)
    texts = [draw.choices(range(VOCABULARY), k=n) for n in lengths]
    branches = [fresh(adapter) for _ in texts]
    while unfinished := [i for i, b in enumerate(branches) if b.length < lengths[i]]:
        step = draw.sample(unfinished, draw.randint(1, len(unfinished)))
        ends = {i: draw.randint(branches[i].length + 1, lengths[i]) for i in step}
        extend(adapter, [(branches[i], texts[i][branches[i].length : ends[i]]) for i in step])
    for branch, tokens in zip(branches, texts, strict=True):
        assert error_of(branch, tokens, adapter.model) < TOLERANCE
        for mine, theirs in zip(branch.states, states_of(adapter.model, tokens), strict=True):
            assert mine.shape == theirs.shape
            spread = mx.max(mx.abs(theirs)) + TOLERANCE
            assert mx.max(mx.abs(mine - theirs)) / spread < TOLERANCE


@uncompiled()
def test_a_sequence_goes_on_from_a_snapshot_as_if_it_had_been_computed_whole() -> None:
    adapter, draw = adapter_of("qwen3_next"), random.Random(1)
    text = draw.choices(range(VOCABULARY), k=20)
    first = fresh(adapter)
    extend(adapter, [(first, text[:11])])
    other = first.fork()
    extend(adapter, [(first, text[11:])])
    turned = text[:11] + [(t + 1) % VOCABULARY for t in text[11:]]
    extend(adapter, [(other, turned[11:])])
    assert error_of(first, text, adapter.model) < TOLERANCE
    assert error_of(other, turned, adapter.model) < TOLERANCE


@pytest.mark.parametrize("architecture", KINDS)
@uncompiled()
def test_the_check_notices_a_state_that_is_not_carried_on(architecture: str) -> None:
    adapter, draw = adapter_of(architecture), random.Random(1)
    text = draw.choices(range(VOCABULARY), k=12)
    branch = fresh(adapter)
    extend(adapter, [(branch, text[:6])])
    branch.states = fresh(adapter).states
    extend(adapter, [(branch, text[6:])])
    assert error_of(branch, text, adapter.model) > TOLERANCE


def test_states_keep_types_of_their_own() -> None:
    model = toy_model("qwen3_next", toy_config("qwen3_next"))
    model.set_dtype(mx.bfloat16)
    adapter = Adapter(model)
    assert [state.dtype for state in adapter.states] == [mx.bfloat16, mx.float32] * 2
    branch = fresh(adapter)
    extend(adapter, [(branch, [1, 2, 3])])
    assert [array.dtype for array in branch.states] == [mx.bfloat16, mx.float32] * 2


def test_states_are_listed_by_layer() -> None:
    states = adapter_of("qwen3_next").states
    assert [state.layer for state in states] == [0, 0, 1, 1]
    assert [state.shape for state in states[:2]] == [(3, 56), (4, 6, 8)]
    assert Adapter(toy_model("llama", toy_config("llama"))).states == []


def test_a_model_without_attention_has_no_layers_and_the_type_of_its_weights() -> None:
    model = toy_model("mamba", toy_config("mamba"))
    model.set_dtype(mx.bfloat16)
    adapter = Adapter(model)
    assert adapter.layers == []
    assert (adapter.dtype, adapter.vocabulary) == (mx.bfloat16, VOCABULARY)


def test_an_adapted_model_still_runs_as_mlx_lm_does() -> None:
    plain = toy_model("nemotron_h", toy_config("nemotron_h"))
    tokens = [[3, 1, 4, 1, 5], [9, 2]]
    before = reference(plain, tokens)
    kinds = [type(m).__name__ for m in plain.modules()]
    Adapter(plain)
    assert mx.array_equal(reference(plain, tokens), before)
    assert [type(m).__name__ for m in plain.modules()] == kinds


def test_any_number_of_adapters_share_one_model() -> None:
    model = toy_model("lfm2", toy_config("lfm2"))
    depth = {len(type(m).__mro__) for _ in range(3) for m in Adapter(model).model.modules()}
    assert max(depth) <= 6


def test_a_state_that_no_module_writes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateCache, "keep", lambda self, caches: None)
    with pytest.raises(UnsupportedModelError, match="does not write all of its state"):
        Adapter(toy_model("lfm2", toy_config("lfm2")))


def test_recurrent_layers_are_refused_on_the_dense_path() -> None:
    with pytest.raises(UnsupportedModelError, match="recurrent layers do not run one request"):
        Adapter(toy_model("mamba", toy_config("mamba")), ragged=False)


def test_a_step_needs_the_states_of_its_rows() -> None:
    adapter = adapter_of("mamba")
    one, no_states = mx.array([1]), RowStates((1,), [])
    with pytest.raises(ValueError, match="8 arrays of state, got 0"):
        adapter.forward(one, one, None, mx.array([0]), states=no_states)  # type: ignore[arg-type]
