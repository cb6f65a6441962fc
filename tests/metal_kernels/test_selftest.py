"""The self-test: right kernels pass on every device, in every dtype, whatever is drawn."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels import model_heads, reference, selftest
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.selftest import Case
from tests.metal_kernels.emulator import Emulator, needs_compiler
from tests.metal_kernels.tf32 import multiply_in_tf32, rounded

CASES = [
    case
    for model in ("llama-3-8b", "smollm2-135m")
    for dtype in model_heads.DTYPES
    for case in model_heads.cases(model, dtype)
]
SEEDS = [
    pytest.param(seed, marks=() if seed == 0 else pytest.mark.whole_grid) for seed in range(12)
]


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_in_tf32(monkeypatch)


@needs_compiler
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_kernels_pass_where_the_device_multiplies_in_tf32(case: Case, seed: int) -> None:
    good, seen = selftest.compare(case, Kernels(Emulator().metal_kernel), seed)
    assert good, seen


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: mx.matmul(a, b),
        lambda a, b: a @ b,
        lambda a, b: mx.einsum("ij,jk->ik", a, b),
    ],
)
def test_the_device_is_as_inexact_as_it_should_be(
    product: Callable[[mx.array, mx.array], mx.array],
) -> None:
    left, right = mx.random.normal((64, 128)), mx.random.normal((128, 64))
    inner = (left[:, None] * right.T).sum(-1)
    error = mx.abs(product(left, right) - inner).max().item()
    assert 1e-3 < error < 0.1


def test_tf32_keeps_ten_bits_of_mantissa() -> None:
    x = mx.array([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-12), 0.0])
    assert rounded(x).tolist() == [1 + 2**-10, 1, 1 + 2 * 2**-10, -1, 0]


@pytest.mark.parametrize("dtype", model_heads.DTYPES, ids=str)
def test_an_output_off_by_more_than_its_rounding_fails(
    dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("extend", 4, 2, 64, dtype)
    units = {"within": 0.9, "beyond": 2.5}
    verdicts = {}
    for name, off in units.items():

        def shifted(*_: object, off: float = off) -> tuple[mx.array, mx.array]:
            right = 1 + mx.random.uniform(shape=(47, 4, 64))
            eps = mx.finfo(dtype).eps
            step = off * eps * right if dtype != mx.float32 else off * selftest.SLACK
            return right + step, right

        monkeypatch.setattr(selftest, "both_ways", shifted)
        verdicts[name], _ = selftest.compare(case, Kernels())
    assert verdicts == {"within": True, "beyond": False}


def test_the_reference_is_float32_for_every_dtype() -> None:
    for dtype in model_heads.DTYPES:
        q, k = mx.zeros((3, 4, 64), dtype), mx.zeros((3, 2, 64), dtype)
        out = reference.softmax_attention(q, k, k, selftest.AttentionOptions(1.0))
        assert (out.dtype, out.shape) == (mx.float32, (3, 4, 64))
