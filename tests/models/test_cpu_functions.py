"""mlx-lm's functions are redirected once, and only for the engine that is running."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import activations, kimi_linear, lfm2, llama, mamba2, nemotron_h, qwen3_next
from mlx_lm.models.activations import swiglu as original
from mlx_lm.models.cache import ArraysCache

from sgl_mlx.models.cpu_functions import CpuFunctions
from sgl_mlx.models.cpu_layers import ShortConvolution, use_kernels
from sgl_mlx.models.cpu_math import on_cpu
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
        fast = CpuFunctions(model)
    assert not hasattr(llama.swiglu.redirected_from, "redirected_from")
    with fast:
        assert mx.allclose(llama.swiglu(GATE, X), original(GATE, X), atol=1e-5)


def test_mlx_lms_own_runs_are_left_alone(model: Any) -> None:
    right = bits(original(GATE, X))
    CpuFunctions(model)
    assert bits(llama.swiglu(GATE, X)) == right
    with CpuFunctions(model):
        fast = bits(llama.swiglu(GATE, X))
        elsewhere: list[list[int]] = []
        thread = Thread(target=lambda: elsewhere.append(bits(llama.swiglu(GATE, X))))
        thread.start()
        thread.join()
    assert fast != right, "or the comparison shows nothing"
    assert elsewhere == [right]
    assert bits(llama.swiglu(GATE, X)) == right


def test_an_engine_inside_another_hands_back_to_it(model: Any) -> None:
    with CpuFunctions(model):
        fast = bits(llama.swiglu(GATE, X))
        with CpuFunctions(model):
            pass
        assert bits(llama.swiglu(GATE, X)) == fast


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_only_float32_is_computed_the_fast_way(dtype: mx.Dtype, model: Any) -> None:
    gate, x = GATE.astype(dtype), X.astype(dtype)
    with CpuFunctions(model):
        assert mx.array_equal(llama.swiglu(gate, x), original(gate, x))


def test_functions_that_mlx_lm_compiles_are_left_alone() -> None:
    model = toy_model("gpt_oss", toy_config("gpt_oss"))
    assert any(type(m).__module__ == activations.__name__ for m in model.modules())
    CpuFunctions(model)
    assert activations.nn is nn


HIDDEN = 48
MAMBA = {
    "hidden_size": HIDDEN,
    "n_groups": 2,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "time_step_limit": (0.0, float("inf")),
}


def qwen3_next_layer() -> nn.Module:
    return qwen3_next.Qwen3NextGatedDeltaNet(
        SimpleNamespace(
            hidden_size=HIDDEN,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=32,
            linear_value_head_dim=16,
            linear_conv_kernel_dim=4,
            rms_norm_eps=1e-6,
        )
    )


def kimi_linear_layer() -> nn.Module:
    heads = {"num_heads": 2, "head_dim": 32, "short_conv_kernel_size": 4}
    args = SimpleNamespace(hidden_size=HIDDEN, linear_attn_config=heads, rms_norm_eps=1e-5)
    return kimi_linear.KimiDeltaAttention(args, 0)


def nemotron_h_layer() -> nn.Module:
    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 8, "mamba_proj_bias": False}
    return nemotron_h.NemotronHMamba2Mixer(SimpleNamespace(**MAMBA, **mamba, ssm_state_size=16))


def mamba2_layer() -> nn.Module:
    heads = {"num_heads": 4, "head_dim": 8, "intermediate_size": 32, "use_bias": True}
    args = SimpleNamespace(**MAMBA, **heads, state_size=32, ssm_state_size=32)
    return mamba2.Mamba2Block(args, 0)


def lfm2_layer() -> nn.Module:
    return lfm2.ShortConv(SimpleNamespace(hidden_size=HIDDEN, conv_L_cache=3, conv_bias=True), 0)


LAYERS: list[tuple[Callable[[], nn.Module], int, set[str]]] = [
    (qwen3_next_layer, 2, {"gated_delta", "silu", "rms_norm", "swiglu"}),
    (kimi_linear_layer, 4, {"gated_delta", "channel_decay", "silu", "rms_norm"}),
    (nemotron_h_layer, 2, {"state_space", "silu", "swiglu"}),
    (mamba2_layer, 2, {"state_space", "silu", "swiglu"}),
    (lfm2_layer, 1, set()),
]


class Counting:
    """The kernels, with the names of those that were called."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._kernels, name)


@pytest.mark.parametrize(("make", "arrays", "called"), LAYERS)
def test_recurrent_layers_of_mlx_lm_run_on_the_kernels(
    make: Callable[[], nn.Module],
    arrays: int,
    called: set[str],
    cpu_kernels: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mx.random.seed(5)
    layer = make()
    chunks = [mx.random.normal((3, length, HIDDEN)) for length in (7, 1, 1, 4)]
    plain = ArraysCache(arrays)
    want = [layer(x, cache=plain, mask=None) for x in chunks]
    kernels = Counting(cpu_kernels)
    use_kernels(layer, kernels)  # type: ignore[arg-type]
    functions = CpuFunctions(layer)
    monkeypatch.setattr(functions, "kernels", kernels)
    cache = ArraysCache(arrays)
    with functions:
        got = [layer(x, cache=cache, mask=None) for x in chunks]
    assert kernels.called == {"short_convolution", *called}
    for ours, theirs in zip([*got, *cache.cache], [*want, *plain.cache], strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-5)


def test_masks_and_other_types_are_left_to_mlx_lm(cpu_kernels: ModuleType) -> None:
    layer = qwen3_next_layer()
    x = mx.random.normal((2, 6, HIDDEN))
    mask = mx.array([[True] * 6, [False] * 2 + [True] * 4])
    want = layer(x, mask, ArraysCache(2))
    with CpuFunctions(layer):
        np.testing.assert_allclose(
            np.array(layer(x, mask, ArraysCache(2))), np.array(want), atol=2e-6
        )
    layer.set_dtype(mx.bfloat16)
    half = x.astype(mx.bfloat16)
    want = layer(half, None, ArraysCache(2))
    with CpuFunctions(layer):
        assert mx.array_equal(layer(half, None, ArraysCache(2)), want)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 8}])
def test_other_convolutions_stay_mlxs(options: dict[str, int], cpu_kernels: ModuleType) -> None:
    model = nn.Sequential(nn.Conv1d(16, 16, 3, **{"groups": 16, **options}))
    use_kernels(model, cpu_kernels)
    assert not any(isinstance(m, ShortConvolution) for m in model.modules())
