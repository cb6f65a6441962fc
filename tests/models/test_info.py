"""Describing a model from its headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType as Type
from mlx.utils import tree_flatten

from sgl_mlx import machine
from sgl_mlx.cpu_kernels.open import open_cpu_kernels
from sgl_mlx.errors import ModelNotFoundError
from sgl_mlx.models.info import describe, estimate_weight_bytes
from sgl_mlx.models.loader import load

BY_DEFAULT = None if machine.on_gpu() else "float32"
"""The type that weights are converted to when none is asked for."""


def test_a_gguf_file_is_described(
    write_toy: Callable[[Any, Type], tuple[Path, Path]], toy_class: Any
) -> None:
    path, folder = write_toy(toy_class("llama", "llama"), Type.Q4_0)
    info, whole = describe(path), describe(folder)
    assert (info.format, info.architecture, info.layers) == ("GGUF", "llama", 2)
    assert (info.quantization, info.context_length) == ("Q4_0", 512)
    assert info.parameters == whole.parameters
    assert info.disk_bytes < whole.disk_bytes / 6


def test_a_folder_is_described(folder: Path) -> None:
    info = describe(folder)
    assert (info.format, info.architecture, info.layers) == ("safetensors", "llama", 2)
    assert (info.quantization, info.context_length) == ("F32", 512)
    assert info.to_dict()["parameters"] == info.parameters


def test_the_estimate_is_what_loading_takes(folder: Path, gguf_path: Path) -> None:
    for path in (folder, gguf_path):
        assert estimate_weight_bytes(path, "float32") == load(path, dtype="float32").weight_bytes
        assert estimate_weight_bytes(path) == load(path, dtype="native").weight_bytes


@pytest.mark.parametrize(
    "kind",
    [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0],
    ids=lambda kind: kind.name,
)
def test_a_gguf_file_is_counted_as_what_it_becomes(
    write_toy: Callable[[Any, Type], tuple[Path, Path]], toy_class: Any, kind: Type
) -> None:
    path, _ = write_toy(toy_class("llama", "llama"), kind)
    assert estimate_weight_bytes(path) == load(path, dtype="native").weight_bytes
    kernels = open_cpu_kernels()
    assert estimate_weight_bytes(path, BY_DEFAULT, kernels is not None) == load(path).weight_bytes


def quantized(folder: Path, target: Path, bits: int, group_size: int, mixed: bool = False) -> int:
    """Write a folder's model quantized; return its number of parameters.

    With `mixed`, projections of queries have 3 bits, which the CPU kernels do not multiply.
    """
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(folder)
    count = sum(p.size for _, p in tree_flatten(model.parameters()))

    def how(path: str, module: Any) -> bool | dict[str, int]:
        # a group must divide every row, so the feed-forward's 96 columns stay as they are with 64
        if module.weight.shape[-1] % group_size:
            return False
        return {"bits": 3, "group_size": 32} if mixed and "q_proj" in path else True

    model, config = quantize_model(model, config, group_size, bits, quant_predicate=how)
    target.mkdir()
    save_model(target, model)
    save_config(config, target / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)
    return count


@pytest.mark.parametrize(
    ("bits", "group_size"), [(2, 64), (3, 32), (4, 32), (4, 64), (6, 64), (8, 32)]
)
def test_packed_weights_count_as_the_numbers_they_stand_for(
    folder: Path, tmp_path: Path, bits: int, group_size: int
) -> None:
    target = tmp_path / "packed"
    count = quantized(folder, target, bits, group_size)
    info = describe(target)
    assert info.parameters == count
    assert info.quantization == f"{bits}-bit"
    assert info.native_bytes == load(target, dtype="native").weight_bytes
    packed = open_cpu_kernels() is not None
    assert info.weight_bytes(BY_DEFAULT, packed) == load(target).weight_bytes


@pytest.mark.usefixtures("cpu_kernels")
def test_layers_that_no_kernel_multiplies_count_as_float32_alone(
    folder: Path, tmp_path: Path
) -> None:
    count = quantized(folder, tmp_path / "mixed", 4, 32, mixed=True)
    info = describe(tmp_path / "mixed")
    assert info.packed_bytes == load(tmp_path / "mixed").weight_bytes
    assert info.native_bytes < info.packed_bytes < 4 * count / 2


def test_a_path_that_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf does not exist"):
        describe(tmp_path / "none.gguf")
