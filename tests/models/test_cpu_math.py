"""mlx-lm's SwiGLU is redirected once, and only for the engine that is running."""

from __future__ import annotations

from threading import Thread
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama
from mlx_lm.models.activations import swiglu as original

from sgl_mlx.models.cpu_math import FastActivations, on_cpu
from tests.models.toy import toy_config, toy_model

pytestmark = pytest.mark.skipif(not on_cpu(), reason="needs Linux: on a GPU MLX's own is used")

GATE, X = mx.random.normal((64, 128)) * 8, mx.random.normal((64, 128))


@pytest.fixture(scope="module")
def model() -> Any:
    return toy_model("llama", toy_config("llama"))


def bits(x: mx.array) -> list[int]:
    return list(mx.view(x, mx.int32).flatten().tolist())


def test_as_many_engines_as_one_likes_redirect_it_once(model: Any) -> None:
    for _ in range(1100):
        fast = FastActivations(model)
    assert not hasattr(llama.swiglu.redirected_from, "redirected_from")
    with fast:
        assert mx.allclose(llama.swiglu(GATE, X), original(GATE, X), atol=1e-5)


def test_mlx_lms_own_runs_are_left_alone(model: Any) -> None:
    right = bits(original(GATE, X))
    FastActivations(model)
    assert bits(llama.swiglu(GATE, X)) == right
    with FastActivations(model):
        fast = bits(llama.swiglu(GATE, X))
        elsewhere: list[list[int]] = []
        thread = Thread(target=lambda: elsewhere.append(bits(llama.swiglu(GATE, X))))
        thread.start()
        thread.join()
    assert fast != right, "or the comparison shows nothing"
    assert elsewhere == [right]
    assert bits(llama.swiglu(GATE, X)) == right


def test_an_engine_inside_another_hands_back_to_it(model: Any) -> None:
    with FastActivations(model):
        fast = bits(llama.swiglu(GATE, X))
        with FastActivations(model):
            pass
        assert bits(llama.swiglu(GATE, X)) == fast


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_only_float32_is_computed_the_fast_way(dtype: mx.Dtype, model: Any) -> None:
    gate, x = GATE.astype(dtype), X.astype(dtype)
    with FastActivations(model):
        assert mx.array_equal(llama.swiglu(gate, x), original(gate, x))
