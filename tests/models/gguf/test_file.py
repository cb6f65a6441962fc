"""Reading GGUF headers: right numbers from whole files, clear errors from broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_mlx.errors import CorruptModelError, ModelError, ModelNotFoundError, UnsupportedModelError
from sgl_mlx.models.gguf.file import GGUFFile

shared_path = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_metadata_of_every_type_is_read(tmp_path: Path) -> None:
    path = tmp_path / "kinds.gguf"
    writer = GGUFWriter(path, "llama")
    values = {"uint8": 200, "int8": -3, "uint16": 60_000, "int16": -9}
    values |= {"uint32": 7, "int32": -7, "uint64": 2**40, "int64": -(2**40)}
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(kind, value)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "grüß dich")
    writer.add_array("ints", [1, 2, 3])
    writer.add_array("words", ["a", "", "日本"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GGUFFile(path).metadata
    expected = values | {"f32": 0.5, "f64": 0.1, "yes": True, "text": "grüß dich"}
    expected |= {"ints": [1, 2, 3], "words": ["a", "", "日本"], "general.architecture": "llama"}
    assert {key: read[key] for key in expected} == expected


def test_everything_agrees_with_the_gguf_packages_reader(gguf_path: Path) -> None:
    ours, theirs = GGUFFile(gguf_path), GGUFReader(gguf_path)
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert np.array_equal(ours.floats(tensor.name), tensor.data)
    fields = {name: f.contents() for name, f in theirs.fields.items()}
    assert {key: fields[key] for key in ours.metadata} == ours.metadata


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf does not exist"):
        GGUFFile(tmp_path / "none.gguf")


@pytest.mark.parametrize("start", [b"", b"GG", b"PK\x03\x04" * 10])
def test_another_kind_of_file_is_told_apart(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(start)
    with pytest.raises(CorruptModelError, match="is not a GGUF file"):
        GGUFFile(path)


def test_an_unknown_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "future.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 9) + bytes(32))
    with pytest.raises(UnsupportedModelError, match="GGUF version 9"):
        GGUFFile(path)


def test_lost_weights_are_noticed_before_any_is_read(gguf_path: Path) -> None:
    gguf_path.write_bytes(gguf_path.read_bytes()[:-1000])
    with pytest.raises(CorruptModelError, match=r"is truncated: tensor .* ends at byte [\d,]+"):
        GGUFFile(gguf_path)


@given(st.floats(0, 0.999))
@shared_path
def test_a_file_cut_anywhere_is_called_corrupt(gguf_path: Path, share: float) -> None:
    whole = gguf_path.read_bytes()
    cut = gguf_path.with_name("cut.gguf")
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptModelError):
        GGUFFile(cut)


@given(st.integers(0, 12_000), st.binary(min_size=1, max_size=8))
@shared_path
def test_damaged_bytes_never_raise_anything_but_a_model_error(
    gguf_path: Path, at: int, damage: bytes
) -> None:
    data = bytearray(gguf_path.read_bytes())
    data[at : at + len(damage)] = damage
    broken = gguf_path.with_name("broken.gguf")
    broken.write_bytes(data)
    try:
        file = GGUFFile(broken)
    except ModelError:
        return
    for entry in file.tensors.values():
        assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)
