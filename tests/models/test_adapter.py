"""The adapter: what the check of an architecture rests on, and that the check can fail."""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models import own_attention
from sgl_mlx.models.adapter import Adapter, LayerShape
from sgl_mlx.models.layer_cache import DenseCache, LayerCache, Window
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.attention.step import ExtendStep
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.scheduler.plan import Row
from tests.models.conformance import Mismatch, check, reference
from tests.models.toy import toy_config, toy_model
from tests.models.toy_configs import VOCABULARY, WINDOW

REPLACED = ["stablelm", "plamo", "plamo2", "afm7", "gpt_bigcode", "gear", "llama4"]
REPLACED += ["baichuan_m1", "recurrent_gemma"]


def toy(architecture: str, variant: int = 0) -> Any:
    return toy_model(architecture, toy_config(architecture, variant))


def attend_with(**changes: Any) -> Callable[..., mx.array]:
    """`LayerCache.attend` that hands changed arguments to the step."""

    def attend(
        self: LayerCache, queries: mx.array, options: AttentionOptions, mask: Window | None = None
    ) -> mx.array:
        self.attended = True
        window = mask.size if mask else None
        given = options._replace(**{"window": window, **changes})
        return self._attention.attend(self.layer, queries[:, :, 0], given)[:, :, None]

    return attend


@pytest.mark.parametrize("fault", [{"window": None}, {"sinks": None}, {"scale": 0.1}])
def test_the_check_notices_an_ignored_argument(
    fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerCache, "attend", attend_with(**fault))
    with pytest.raises(Mismatch, match="differ from mlx-lm"):
        check(Adapter(toy("gpt_oss")))


def test_the_check_notices_an_ignored_soft_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerCache, "attend", attend_with(softcap=None))
    with pytest.raises(Mismatch, match="differ from mlx-lm"):
        check(Adapter(toy("gemma2")))


def test_the_check_passes_with_every_argument_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerCache, "attend", attend_with())
    check(Adapter(toy("gpt_oss")))


def test_the_check_notices_tokens_at_wrong_positions() -> None:
    adapter = Adapter(toy("llama"))
    forward = adapter.forward

    def at_the_start(tokens: mx.array, positions: mx.array, *rest: Any, **named: Any) -> mx.array:
        return forward(tokens, positions * 0, *rest, **named)

    adapter.forward = at_the_start  # type: ignore[method-assign]
    with pytest.raises(Mismatch):
        check(adapter)


def test_the_check_notices_a_mask_missing_from_the_dense_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DenseCache, "make_mask", lambda *args, **kwargs: None)
    with pytest.raises(Mismatch):
        check(Adapter(toy("llama"), ragged=False))


def test_layer_shapes_tell_heads_widths_and_windows() -> None:
    swa, full = LayerShape(1, 16, 8, WINDOW), LayerShape(2, 8, 8, None)
    adapter = Adapter(toy("mimo_v2_flash"))
    assert adapter.layers == [swa, full, swa, full]
    assert (adapter.dtype, adapter.vocabulary) == (mx.float32, VOCABULARY)


def test_layer_shapes_tell_the_soft_cap() -> None:
    assert {layer.softcap for layer in Adapter(toy("gemma2")).layers} == {5.0}


def test_layers_that_share_keys_have_no_memory_of_their_own() -> None:
    assert len(Adapter(toy("gemma3n")).layers) == 2


@pytest.mark.parametrize("ragged", [True, False])
def test_a_model_still_runs_as_mlx_lm_does_once_adapted(ragged: bool) -> None:
    tokens = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
    before = reference(toy("llama", 1), tokens)
    model = toy("llama", 1)
    Adapter(model, ragged)
    assert mx.array_equal(reference(model, tokens), before)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_model_in_half_precision_computes_in_half_precision(dtype: mx.Dtype) -> None:
    model = toy("llama", 1)
    model.set_dtype(dtype)
    adapter = Adapter(model)
    row = Row("a", tuple(range(20)), (), tuple(range(1, 21)), 0, True, SamplingParams())
    step = ExtendStep(AttentionPaths(KVPool(adapter.layers, 20, adapter.dtype)), [row])
    logits = adapter.forward(step.tokens, step.positions, step, mx.array([19]))
    assert {x.dtype for x in (logits, *step.made().keys, *step.made().values)} == {dtype}


def test_dense_logits_are_those_of_the_rows_asked_for() -> None:
    adapter = Adapter(toy("qwen3"), ragged=False)
    tokens = mx.array([3, 1, 4, 1, 5])
    every, _ = adapter.forward_dense(tokens, None, mx.arange(5))
    some, _ = adapter.forward_dense(tokens, None, mx.array([4, 1]))
    assert mx.allclose(some, every[mx.array([4, 1])], atol=1e-5)


def test_a_base_of_positions_that_depends_on_the_length_is_refused_on_the_ragged_path() -> None:
    config = toy_config("llama") | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    with pytest.raises(UnsupportedModelError, match="from one position"):
        Adapter(toy_model("llama", config))


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("stablelm", "other keys than the cache holds"),
        ("plamo2", "does not attend through its cache"),
        ("llama4", "reads 'maybe_trim_front' of its cache"),
    ],
)
def test_attention_that_goes_its_own_way_needs_a_subclass_of_ours(
    architecture: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_attention, "_REPLACEMENTS", {})
    with pytest.raises(UnsupportedModelError, match=why):
        Adapter(toy(architecture))


class DerivedKeys(llama.Attention):
    """Attention over keys that are made from those stored."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        store = cache.update_and_fetch
        cache.update_and_fetch = lambda keys, values: (2 * store(keys, values)[0], values)
        return super().__call__(x, mask, cache)


def test_attention_over_other_keys_is_refused_on_the_ragged_path() -> None:
    model = toy("llama")
    model.layers[1].self_attn.__class__ = DerivedKeys
    with pytest.raises(UnsupportedModelError, match="other keys than the cache holds"):
        Adapter(model)


def test_a_mask_of_its_own_is_refused_on_the_ragged_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerCache, "make_mask", lambda *_, **__: mx.array(True))
    with pytest.raises(UnsupportedModelError, match="a mask of its own"):
        Adapter(toy("llama"))


def test_the_check_notices_a_chunk_that_is_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_attention._Chunks, "marked", lambda self, q, k, *rest: (q, k))
    with pytest.raises(Mismatch, match="differ from mlx-lm"):
        check(Adapter(toy("llama4")))


@pytest.mark.parametrize("architecture", REPLACED)
def test_replaced_modules_still_run_as_mlx_lm_does(architecture: str) -> None:
    plain, tokens = toy(architecture), [[3, 1, 4, 1, 5], [9], [2, 6]]
    before = reference(plain, tokens)
    adapted = toy(architecture)
    Adapter(adapted)
    assert mx.array_equal(reference(adapted, tokens), before)


def test_any_number_of_adapters_share_one_model() -> None:
    model = toy("llama")
    plain = type(model.model).__name__
    adapters = [Adapter(model, ragged=False) for _ in range(1100)]
    assert type(model.model).__name__ == plain
    assert len(type(model.model).__mro__) <= 6
    tokens, last = mx.array([5, 6, 7]), mx.array([2])
    first, _ = adapters[0].forward_dense(tokens, None, last)
    again, _ = adapters[-1].forward_dense(tokens, None, last)
    assert first.shape == (1, VOCABULARY)
    assert mx.array_equal(first, again)
    assert model(tokens[None]).shape == (1, 3, VOCABULARY)  # mlx-lm's own call sees all rows
