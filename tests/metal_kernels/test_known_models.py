"""What the runtime asks of the kernels for well-known models: the very text, and its answers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels import known
from sgl_mlx.metal_kernels.build import Kernels, read
from sgl_mlx.metal_kernels.selftest import Case, both_ways, compare
from tests.metal_kernels.emulator import Emulator, needs_compiler

EVERY_RUN = {
    *(case for model in known.MODELS for case in known.cases(model)),
    *known.cases("llama-3-8b", mx.float16, quantized=True),
    *known.cases("smollm2-135m", mx.float32),
}
"""Models in their usual dtype, an 8-bit pool, and what the embedded model runs in here."""

CASES = [
    pytest.param(case, id=str(case), marks=() if case in EVERY_RUN else pytest.mark.whole_grid)
    for case in known.all_cases()
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
