"""Repacked blocks stand for exactly the numbers that ggml's do."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from sgl_mlx.models.gguf.blocks import GROUP_SIZE, REPACKABLE, Affine, repack


def unpacked(affine: Affine, columns: int) -> np.ndarray:
    bits = affine.weight.shape[-1] * 32 // columns
    scales, biases = (mx.array(part).astype(mx.float32) for part in affine[1:])
    weight = mx.array(affine.weight)
    return np.array(mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits))


def random_blocks(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Any integers, and scales that are ordinary float16 numbers."""
    block, size = GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(3)
    raw = draw.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    halves = draw.normal(0, 0.1, (rows, columns // block, 2)).astype(np.float16)
    n_scales = 1 if kind in (Type.Q4_0, Type.Q8_0) else 2
    raw[..., : 2 * n_scales] = halves[..., :n_scales].view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", REPACKABLE, ids=lambda kind: kind.name)
def test_repacked_blocks_dequantize_to_ggmls_numbers(kind: Type) -> None:
    raw = random_blocks(kind, rows=6, columns=512)
    expected = dequantize(raw, kind)
    rounding = 2e-3 if kind == Type.Q4_K else 1e-6  # float16 products of scales
    error = np.abs(unpacked(repack(raw, kind), 512) - expected).max()
    assert error <= rounding * np.abs(expected).max()


def test_leading_dimensions_are_kept() -> None:
    raw = random_blocks(Type.Q8_0, rows=6, columns=64).reshape(2, 3, -1)
    assert [part.shape for part in repack(raw, Type.Q8_0)] == [(2, 3, 16), (2, 3, 2), (2, 3, 2)]


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0], ids=lambda kind: kind.name)
def test_the_packing_is_the_one_mlx_itself_reads(kind: Type, tmp_path: Path) -> None:
    values = np.random.default_rng(5).normal(size=(8, 64)).astype(np.float32)
    raw = quantize(values, kind)
    writer = GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("one.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = mx.load(str(tmp_path / "one.gguf"))
    ours = repack(raw, kind)
    for part, name in zip(ours, ("weight", "scales", "biases"), strict=True):
        assert np.array_equal(part, np.array(loaded[f"one.{name}"])), name
