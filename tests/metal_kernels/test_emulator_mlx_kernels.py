"""MLX's own attention kernels run in the emulator, unchanged, and agree with MLX on the CPU.

Their text is taken from the headers in MLX's wheel. Function constants, which Metal fills in when
it makes a pipeline, become plain constants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_kernels.emulator import SCHEDULES, Emulator, needs_compiler

pytestmark = needs_compiler
INCLUDE = Path(mx.__file__).parent / "include"
KERNELS = "mlx/backend/metal/kernels"
TOLERANCE = {mx.float32: 1e-4, mx.float16: 1e-3, mx.bfloat16: 8e-3}
HEADS, KV_HEADS = 4, 2
PARAMS = """
  mlx::steel::AttnParams p;
  p.B = 1; p.H = {heads}; p.D = {dim}; p.qL = {new}; p.kL = {total}; p.gqa_factor = {group};
  p.scale = {scale};
  p.NQ = ({new} + 31) / 32; p.NK = ({total} + {bk} - 1) / {bk};
  p.NQ_aligned = {new} / 32; p.NK_aligned = {total} / {bk};
  p.qL_rem = {new} % 32; p.kL_rem = {total} % {bk}; p.qL_off = {total} - {new};
  p.Q_strides[0] = 0; p.Q_strides[1] = {new} * {dim}; p.Q_strides[2] = {dim};
  p.K_strides[0] = 0; p.K_strides[1] = {total} * {dim}; p.K_strides[2] = {dim};
  p.V_strides[0] = 0; p.V_strides[1] = {total} * {dim}; p.V_strides[2] = {dim};
  p.O_strides[0] = 0; p.O_strides[1] = {new} * {dim}; p.O_strides[2] = {dim};
  attention<T, 32, {bk}, {dim}, {dim}, 4, 1>(
      q, k, v, out, &p, nullptr, (const device float*)nullptr, nullptr, nullptr,
      thread_index_in_simdgroup, simdgroup_index_in_threadgroup, threadgroup_position_in_grid,
      thread_position_in_threadgroup);
"""
VECTOR = """
  int group = {group}, n = {total}, none = 0;
  size_t head_stride = {total} * {dim}, row_stride = {dim};
  float scale = {scale};
  sdpa_vector<T, {dim}>(
      q, k, v, out, group, n, head_stride, row_stride, head_stride, row_stride, scale,
      nullptr, nullptr, none, none, none, nullptr, none, threadgroup_position_in_grid,
      threadgroups_per_grid, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
"""


def flat(name: str, constants: Mapping[str, object], seen: set[str] | None = None) -> str:
    """A header with what it includes; MLX's `utils.h` is always there already."""
    seen = {f"{KERNELS}/utils.h"} if seen is None else seen
    if name in seen:
        return ""
    seen.add(name)
    text = (INCLUDE / name).read_text(encoding="utf-8").encode("ascii", "ignore").decode()
    text = re.sub(
        r"constant (\w+) (\w+) \[\[function_constant\(\d+\)\]\];",
        lambda m: f"constant {m[1]} {m[2]} = {constants.get(m[2], 0)};",
        text,
    )
    # specialised for each address space: here all are one
    text = re.sub(r"template <typename T>\nstruct pointer_element<(?!thread )\w+ T\*> {.*?};", "",
                  text, flags=re.DOTALL)  # fmt: skip
    return re.sub(
        r'^#include "([^"]+)".*$', lambda m: flat(m[1], constants, seen), text, flags=re.MULTILINE
    )


def qkv(dtype: mx.Dtype, new: int, total: int, dim: int) -> list[mx.array]:
    lengths = ((HEADS, new), (KV_HEADS, total), (KV_HEADS, total))
    return [
        mx.random.normal((1, heads, length, dim), key=mx.random.key(i)).astype(dtype)
        for i, (heads, length) in enumerate(lengths)
    ]


def assert_agrees(
    source: str, header: str, arrays: list[mx.array], grid: tuple[int, int, int], threads: int
) -> None:
    q, k, _ = arrays
    group, dim, total = HEADS // KV_HEADS, q.shape[-1], k.shape[2]
    words = {"heads": HEADS, "group": group, "dim": dim, "new": q.shape[2], "total": total}
    for word, value in {**words, "scale": f"{dim**-0.5!r}", "bk": 16 if dim > 64 else 32}.items():
        source = source.replace(f"{{{word}}}", str(value))
    kernel = Emulator(schedules=SCHEDULES).metal_kernel(
        "mlx_own", ["q", "k", "v"], ["out"], source, header
    )
    (out,) = kernel(
        inputs=arrays,
        template=[("T", q.dtype)],
        output_shapes=[q.shape],
        output_dtypes=[q.dtype],
        grid=grid,
        threadgroup=(threads, 1, 1),
    )
    wide = [x.astype(mx.float32) for x in arrays]
    want = mx.fast.scaled_dot_product_attention(*wide, scale=dim**-0.5, mask="causal")
    np.testing.assert_allclose(
        np.array(out.astype(mx.float32)), np.array(want), atol=TOLERANCE[q.dtype]
    )


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_sdpa_vector(dtype: mx.Dtype, dim: int) -> None:
    header = flat(f"{KERNELS}/sdpa_vector.h", {"do_causal": "true"})
    grid = (HEADS * 1024, 2, 1)
    assert_agrees(VECTOR, header, qkv(dtype, 2, 70, dim), grid, 1024)


@pytest.mark.parametrize(("dim", "new", "total"), [(64, 40, 75), (128, 32, 64), (80, 33, 33)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_steel_attention(dtype: mx.Dtype, dim: int, new: int, total: int) -> None:
    block = 16 if dim > 64 else 32
    constants = {
        "do_causal": "true",
        "align_Q": str(new % 32 == 0).lower(),
        "align_K": str(total % block == 0).lower(),
    }
    header = flat(f"{KERNELS}/steel/attn/kernels/steel_attention.h", constants)
    blocks = -(-new // 32)
    assert_agrees(PARAMS, header, qkv(dtype, new, total, dim), (blocks * 128, HEADS, 1), 128)
