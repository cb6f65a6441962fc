"""Refusals of the ops: each names the array and every dimension."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels import reference
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from tests.metal_kernels.cases import Case, decode_call, extend_call

CASE = Case(dim=64, group=3, kv_heads=2, dtype=mx.float16)


def halves(*shape: int) -> mx.array:
    return mx.zeros(shape, mx.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": halves(4, 6, 64)}, r"q has shape \(4, 6, 64\), expected \(T=5, Hq, D\)"),
        ({"keys": halves(5, 2, 32)}, r"keys has shape .* expected \(T=5, Hkv, D=64\)"),
        ({"values": halves(5, 3, 64)}, r"values has shape .* \(T=5, Hkv=2, V\)"),
        ({"q": halves(5, 7, 64)}, "Hq=7 query heads do not divide by Hkv=2"),
        ({"keys": mx.zeros((5, 2, 64))}, r"keys is mlx.core.float32, expected mlx.core.float16"),
        ({"options": AttentionOptions(1.0, window=0)}, "window=0 must be"),
        ({"options": AttentionOptions(1.0, softcap=-1.0)}, "softcap=-1.0 must be"),
        (
            {"options": AttentionOptions(1.0, sinks=halves(5))},
            r"sinks has shape \(5,\), expected \(Hq=6\)",
        ),
        (
            {"pool": PoolLayer(halves(9, 2, 64), halves(9, 2, 32))},
            r"pool values .* \(N=9, Hkv=2, V=64\)",
        ),
        ({"pool": PoolLayer(halves(9, 1, 64), halves(9, 2, 64))}, r"pool keys .* \(N, Hkv=2, D=64"),
        ({"pool": PoolLayer(halves(9, 2, 64), halves(8, 2, 64))}, r"pool values .* \(N=9, Hkv=2"),
        ({"pool": PoolLayer(*[halves(9, 2, 64)] * 2, halves(9, 2))}, "pool keys is .*float16"),
        ({"pool": PoolLayer(*[halves(9, 2, 64).astype(mx.int8)] * 2, halves(9, 2))}, "must both"),
    ],
)
def test_an_extend_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = extend_call(CASE, [(3, 4), (0, 1)]).arguments | change
    with pytest.raises(ValueError, match=message):
        reference.extend_attention(ExtendInputs(**arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tail_keys": halves(3, 5, 2, 64)}, r"tail_keys .* expected \(B=2, W=5, Hkv, D=64\)"),
        ({"tail_length": 6}, r"tail_length=6 is outside 1..5"),
        ({"q": halves(3, 6, 64)}, r"q has shape \(3, 6, 64\), expected \(T=2, Hq, D\)"),
    ],
)
def test_a_decode_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = decode_call(CASE, [3, 0], 3).arguments | change
    with pytest.raises(ValueError, match=message):
        reference.decode_attention(DecodeInputs(**arguments))


def test_a_head_dim_without_a_kernel_is_refused() -> None:
    arguments = extend_call(Case(dim=72), [(3, 4)]).arguments
    with pytest.raises(ValueError, match=r"D=72, V=72: the kernels take .* widths: 64/64, 80/80"):
        reference.extend_attention(ExtendInputs(**arguments))
