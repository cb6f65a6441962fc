"""Every broken model is refused with a message that says which file is wrong and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file, save_file

from sgl_mlx.errors import (
    CorruptModelError,
    ModelNotFoundError,
    SglError,
    TokenizerError,
    UnsupportedModelError,
)
from sgl_mlx.models.loader import load

MakeFolder = Callable[..., Path]
Break = Callable[[Path], object]


def change_weights(folder: Path, **changes: np.ndarray | None) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file) | changes
    save_file({name: w for name, w in weights.items() if w is not None}, file)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


NORM = "model.norm.weight"

BROKEN: dict[str, tuple[Break, type[SglError], str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        ModelNotFoundError,
        r"no model folder: it has no config\.json",
    ),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        CorruptModelError,
        r"config\.json is not JSON",
    ),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        CorruptModelError,
        r"config\.json must hold a JSON object, found list",
    ),
    "no model_type": (
        lambda f: (f / "config.json").write_text("{}"),
        CorruptModelError,
        r"config\.json has no model_type",
    ),
    "config lacks numbers": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"}'),
        CorruptModelError,
        "hidden_size",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        ModelNotFoundError,
        r"holds no model\*\.safetensors",
    ),
    "weights truncated": (
        lambda f: cut(f / "model.safetensors", 100),
        CorruptModelError,
        r"model\.safetensors is truncated: its tensors end at byte [\d,]+, the file at",
    ),
    "weights empty": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        CorruptModelError,
        r"model\.safetensors is truncated or no safetensors file",
    ),
    "header broken": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"{,,}"),
        CorruptModelError,
        "broken safetensors header",
    ),
    "header contradicts itself": (
        lambda f: rewritten(f / "model.safetensors", b'"shape":[64]', b'"shape":[63]'),
        CorruptModelError,
        r"is F32 of shape \(63,\) in 256 bytes",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        TokenizerError,
        r"tokenizer\.json is missing",
    ),
    "tokenizer broken": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        TokenizerError,
        r"tokenizer\.json is not a readable tokenizer",
    ),
    "weight missing": (
        lambda f: change_weights(f, **{NORM: None}),
        CorruptModelError,
        r"model\.norm\.weight",
    ),
    "weight too many": (
        lambda f: change_weights(f, **{"model.extra.weight": np.zeros(3, np.float32)}),
        CorruptModelError,
        r"model\.extra\.weight",
    ),
    "weight of another shape": (
        lambda f: change_weights(f, **{NORM: np.zeros(3, np.float32)}),
        CorruptModelError,
        r"\(64,\).*\(3,\).*model\.norm\.weight",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_name(folder: Path, case: str) -> None:
    damage, error, message = BROKEN[case]
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert "toy" in str(caught.value)


def test_an_architecture_that_cannot_run_is_refused_before_any_weight_is_looked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v41"}))
    with pytest.raises(UnsupportedModelError, match=r"'deepseek_v41'.*--architectures"):
        load(tmp_path)


def test_missing_shards_are_listed(make_folder: MakeFolder) -> None:
    folder = make_folder(shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CorruptModelError, match=r"lacks 1 of the 3 shards .*model-00002-of-00003"):
        load(folder)


def test_an_unknown_architecture_is_named_with_its_neighbours(make_folder: MakeFolder) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'lama5' is not supported; near .*llama"):
        load(make_folder(model_type="lama5"))


def test_an_unknown_gguf_architecture_is_named_with_the_known(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"'mamba' is not supported; .* llama, qwen2"):
        load(path)


def test_a_truncated_gguf_is_refused(gguf_path: Path) -> None:
    cut(gguf_path, 4_000)
    with pytest.raises(CorruptModelError, match=r"toy\.gguf is truncated"):
        load(gguf_path)


def rewritten(path: Path, replace: bytes, by: bytes) -> Path:
    data = path.read_bytes()
    assert replace in data
    path.write_bytes(data.replace(replace, by))
    return path


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("llama.block_count", CorruptModelError, r"llama\.block_count is missing"),
        ("tokenizer.ggml.tokens", TokenizerError, "has no tokenizer"),
        ("tokenizer.ggml.model", TokenizerError, "has no tokenizer"),
        ("tokenizer.ggml.scores", TokenizerError, "scores per token, found 0"),
        ("blk.1.attn_q.weight", CorruptModelError, r"layers\.1\.self_attn\.q_proj\.weight is miss"),
        ("token_embd.weight", CorruptModelError, r"lacks the tensor token_embd\.weight"),
    ],
)
def test_a_gguf_that_lacks_something_says_what(
    gguf_path: Path, key: str, error: type[SglError], message: str
) -> None:
    other = "blk.9.attn_q.weight" if key.startswith("blk") else key[:-1] + "_"
    with pytest.raises(error, match=message):
        load(rewritten(gguf_path, key.encode(), other.encode()))


def test_a_gguf_whose_weights_do_not_fit_its_metadata_shows_both_shapes(
    gguf_path: Path, tmp_path: Path
) -> None:
    number = (96).to_bytes(4, "little")
    key = b"llama.feed_forward_length\x04\x00\x00\x00"
    with pytest.raises(CorruptModelError, match=r"has shape \(96, 64\), .* wants \(97, 64\)"):
        load(rewritten(gguf_path, key + number, key + (97).to_bytes(4, "little")))


def test_the_quantization_of_a_broken_config_is_checked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "odd"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptModelError, match="unsupported compressed-tensors format 'odd'"):
        load(folder)
