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


# -- split files and files of another kind ---------------------------------------------------------


def split(source: Path, target: Path, tensors: int) -> list[Path]:
    """The same model over files of at most so many tensors, as the gguf package splits."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama", split_max_tensors=tensors)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.stem}-*-of-*.gguf"))


@pytest.mark.parametrize("tensors", [1, 4, 11])
def test_a_split_model_is_read_as_one_from_any_of_its_files(
    gguf_path: Path, tmp_path: Path, tensors: int
) -> None:
    whole = GGUFFile(gguf_path)
    parts = split(gguf_path, tmp_path / "many.gguf", tensors)
    assert len(parts) > 1
    for part in (parts[0], parts[-1]):
        file = GGUFFile(part)
        assert file.paths == parts
        assert file.path == parts[0]
        assert file.metadata["tokenizer.ggml.tokens"] == whole.metadata["tokenizer.ggml.tokens"]
        assert file.tensors.keys() == whole.tensors.keys()
        for name in whole.tensors:
            assert np.array_equal(file.floats(name), whole.floats(name))


def test_a_split_model_is_refused_without_one_of_its_files(gguf_path: Path, tmp_path: Path) -> None:
    parts = split(gguf_path, tmp_path / "many.gguf", 4)
    parts[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"00002-of-\d+\.gguf is missing; .* split over"):
        GGUFFile(parts[0])


def test_a_part_under_another_name_says_that_it_is_one(gguf_path: Path, tmp_path: Path) -> None:
    parts = split(gguf_path, tmp_path / "many.gguf", 4)
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(CorruptModelError, match=r"is one of \d+ files .* keep their names"):
        GGUFFile(renamed)


def test_parts_of_different_models_do_not_become_one(gguf_path: Path, tmp_path: Path) -> None:
    parts = split(gguf_path, tmp_path / "many.gguf", 4)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CorruptModelError, match="do not belong together"):
        GGUFFile(parts[0])


def test_a_big_endian_file_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(64))
    with pytest.raises(UnsupportedModelError, match="big-endian GGUF"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"<!doctype html><html>", "a web page"),
        (b"PK\x03\x04" * 10, "a ZIP archive"),
        (b"tjgg" + bytes(40), "a GGML file from before GGUF"),
        (struct.pack("<Q", 40) + b'{"model.norm.weight": {}}', "a safetensors file"),
        (b"\x00" * 40, "something else"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(
    tmp_path: Path, start: bytes, what: str
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(start)
    with pytest.raises(CorruptModelError, match=f"is not a GGUF file: it is {what}"):
        GGUFFile(path)
