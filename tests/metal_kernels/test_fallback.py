"""A kernel is used only after it was seen to be right; one that is wrong costs no answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.errors import KernelError
from sgl_mlx.metal_kernels import reference
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.fallback import KernelsWithFallback
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer

OPTIONS = AttentionOptions(0.125)


class Broken:
    """A factory whose kernels do not compile, or answer with a constant."""

    def __init__(self, answer: float | None) -> None:
        self.answer = answer

    def __call__(self, **_: Any) -> Any:
        return self.launch

    def launch(
        self, output_shapes: Sequence[Any], output_dtypes: Sequence[Any], **_: Any
    ) -> list[mx.array]:
        if self.answer is None:
            raise RuntimeError("program_source:3: error: no such function")
        return [
            mx.full(shape, self.answer, dtype)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]


def extend(kernels: KernelsWithFallback) -> tuple[mx.array, mx.array]:
    q, k, v = (mx.random.normal((5, heads, 64)) for heads in (4, 2, 2))
    pool = PoolLayer(mx.random.normal((9, 2, 64)), mx.random.normal((9, 2, 64)))
    inputs = ExtendInputs(q, k, v, pool, ExtendPlan([ExtendRow([3, 1], 5)]), OPTIONS)
    return kernels.extend(inputs), reference.extend_attention(inputs)


def decode(kernels: KernelsWithFallback) -> tuple[mx.array, mx.array]:
    q, k, v = mx.random.normal((1, 4, 64)), *(mx.random.normal((1, 3, 2, 64)) for _ in "kv")
    pool = PoolLayer(mx.random.normal((9, 2, 64)), mx.random.normal((9, 2, 64)))
    inputs = DecodeInputs(q, k, v, 2, pool, DecodePlan([[4, 2]], width=3), OPTIONS)
    return kernels.decode(inputs), reference.decode_attention(inputs)


@pytest.mark.parametrize("answer", [None, 0.0, float("nan")], ids=["text", "zeros", "nan"])
@pytest.mark.parametrize("attend", [extend, decode])
def test_a_kernel_that_is_refused_or_wrong_gives_way_to_the_reference(
    attend: Any, answer: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = KernelsWithFallback(Kernels(Broken(answer)))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            got, right = attend(guarded)
            assert mx.array_equal(got, right)
    assert len(caplog.records) == 1, "it is said once"
    assert guarded.failed(attend.__name__)


@pytest.mark.parametrize("attend", [extend, decode])
def test_by_force_it_is_an_error(attend: Any) -> None:
    with pytest.raises(KernelError, match=r"heads=4.*no such function"):
        attend(KernelsWithFallback(Kernels(Broken(None)), force=True))


def test_a_kernel_that_passes_its_self_test_is_used(kernels: Kernels) -> None:
    guarded = KernelsWithFallback(kernels, force=True)
    for attend in (extend, decode):
        got, right = attend(guarded)
        assert mx.allclose(got, right, atol=1e-5)
        assert not guarded.failed(attend.__name__)
    assert [v.good for v in guarded.verdicts.values()] == [True, True]
