"""Headers of safetensors files: what they declare, and no surprise from damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sgl_mlx.errors import ModelError, ModelNotFoundError
from sgl_mlx.models.safetensors_file import read_config, read_entries, read_header


def test_the_header_declares_what_the_library_loads(folder: Path) -> None:
    arrays = load_file(folder / "model.safetensors")
    declared = {name: (e.shape, e.size, e.count) for name, e in read_entries(folder).items()}
    assert declared == {name: (a.shape, a.nbytes, a.size) for name, a in arrays.items()}


def test_shards_are_read_as_one(folder: Path, make_folder: Callable[..., Path]) -> None:
    assert read_entries(make_folder(shards=4)) == read_entries(folder)


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    assert read_header(tmp_path / "model.safetensors") == {}


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2, np.float16)}, path, metadata={"format": "mlx"})
    assert list(read_header(path)) == ["a"]


@given(st.integers(0, 3_000), st.binary(min_size=1, max_size=8))
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_damaged_bytes_never_raise_anything_but_a_model_error(
    folder: Path, at: int, damage: bytes
) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[at : at + len(damage)] = damage
    broken = folder / "broken.safetensors"
    broken.write_bytes(data)
    try:
        entries = read_header(broken)
    except ModelError:
        return
    assert all(entry.size <= len(data) for entry in entries.values())


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("model-Q4.gguf", "give a GGUF file, such as"),
        ("snapshots/abc/config.json", "give the folder of"),
        ("mlx/config.json", "give the folder of"),
        ("adapter_config.json", "belongs to a LoRA adapter"),
        ("pytorch_model.bin", "is in PyTorch's format"),
    ],
)
def test_a_folder_without_a_config_says_what_it_is(tmp_path: Path, file: str, advice: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json; ") as found:
        read_config(tmp_path)
    assert advice in str(found.value)
    assert str(tmp_path / file) in str(found.value)
