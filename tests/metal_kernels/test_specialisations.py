"""Every specialisation that the models named in the design need: what MLX would compile of it."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels.build import Kernels, read
from tests.metal_kernels.cases import Case, decode_call, extend_call
from tests.metal_kernels.emulator import Emulator, compiler
from tests.metal_kernels.emulator.trace import trace


class Model(NamedTuple):
    """Attention of one model."""

    name: str
    heads: int
    kv_heads: int
    dim: int
    windows: tuple[int | None, ...] = (None,)


MODELS = (
    Model("SmolLM2-135M", 9, 3, 64),
    Model("Llama-3-8B", 32, 8, 128),
    Model("Qwen3-4B", 32, 8, 128),
    Model("Gemma-3-4B", 8, 4, 256, (None, 1024)),
    Model("LLaVA-1.5-7B", 32, 32, 128),
)

SPECIALISATIONS = [
    pytest.param(model, window, quantized, dtype, id=f"{model.name}-{window}-{quantized}-{dtype}")
    for model in MODELS
    for window in model.windows
    for quantized in (False, True)
    for dtype in (mx.float16, mx.bfloat16)
]


def launch_all(case: Case, kernels: Kernels) -> None:
    """An extend, and a decode over a shared span: K1, K2, K3 and K2b."""
    extend_call(case, [(2, 1)]).run(kernels)
    decode_call(case, [1, 1], 1, [(0, 2, 0, 2)]).run(kernels)


class Recorder:
    """A factory of MLX's own kernels that keeps what MLX would compile."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def metal_kernel(self, **definition: object) -> object:
        made = mx.fast.metal_kernel(**definition)

        def call(*, inputs: list[mx.array], **launch: object) -> list[mx.array]:
            found = trace(lambda *xs: made(inputs=list(xs), **launch), inputs)
            self.texts.append(found.text)
            shapes, dtypes = launch["output_shapes"], launch["output_dtypes"]
            return [mx.zeros(s, d) for s, d in zip(shapes, dtypes, strict=True)]

        return call


@pytest.mark.parametrize(("model", "window", "quantized", "dtype"), SPECIALISATIONS)
def test_the_text_emulated_is_byte_for_byte_what_mlx_would_compile(
    model: Model, window: int | None, quantized: bool, dtype: mx.Dtype
) -> None:
    if compiler() is None:
        pytest.skip("no clang++ of version 16 or later: apt-get install clang-19")
    group = model.heads // model.kv_heads
    case = Case(model.dim, dtype, group, model.kv_heads, window, quantized=quantized)
    emulator, recorder = Emulator(), Recorder()
    launch_all(case, Kernels(emulator.metal_kernel))
    launch_all(case, Kernels(recorder.metal_kernel))
    emulated = [launch.msl for launch in emulator.launches]
    assert [msl.text for msl in emulated] == recorder.texts
    bodies = ("extend_attention", "decode_attention", "shared_attention", "merge_partials")
    for body, msl in zip(bodies, emulated, strict=True):
        assert read("attention.h") in msl.text
        assert read(f"{body}.metal") in msl.text
        assert msl.text.isascii()
        assert len(msl.buffers) <= 31
