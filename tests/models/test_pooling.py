"""The pooling of embedding models is read from folders and GGUF files, or its fault is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models.loader import load
from sgl_mlx.models.pooling import Pooling, folder_pooling, gguf_pooling
from sgl_mlx.tokenizer import Tokenizer

MakeFolder = Callable[..., Path]


def add_pooling(folder: Path, pooling: Any, *more: str) -> Path:
    """Write the files of sentence-transformers into a folder; `more` are further modules."""
    names = ["Transformer", "Pooling", *more]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"st.models.{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def read(folder: Path, **config: Any) -> Pooling | None:
    return folder_pooling(folder, config, Tokenizer.from_file(folder))


LAST = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True, "include_prompt": True}


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (LAST, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_modes_are_read(make_folder: MakeFolder, given: Any, mode: str, normalize: bool) -> None:
    folder = add_pooling(make_folder(), given, *["Normalize"] * normalize)
    assert read(folder) == Pooling(mode, normalize)  # type: ignore[arg-type]


def test_a_folder_without_these_files_is_no_embedding_model(make_folder: MakeFolder) -> None:
    folder = make_folder()
    assert read(folder) is None
    (folder / "modules.json").write_text('[{"type": "st.Transformer", "path": ""}]')
    assert read(folder) is None


@pytest.mark.parametrize(
    ("given", "more", "config", "said"),
    [
        ({"pooling_mode_cls_token": True}, [], {}, "cls_token"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}, [], {}, "max_tokens"),
        ({}, [], {}, "none"),
        ({"pooling_mode": ["mean", "cls"]}, [], {}, "cls"),
        (LAST, ["Dense"], {}, "Dense"),
        (LAST, [], {"use_bidirectional_attention": True}, "later tokens"),
        (LAST, [], {"is_causal": False}, "later tokens"),
    ],
)
def test_a_fault_is_told(
    make_folder: MakeFolder, given: Any, more: list[str], config: Any, said: str
) -> None:
    found = read(add_pooling(make_folder(), given, *more), **config)
    assert found is not None
    assert said in found.fault


@pytest.mark.parametrize("broken", ["{", "[]", "7", '[{"type": "st.Pooling"}]', "null"])
def test_broken_files_are_errors(make_folder: MakeFolder, broken: str) -> None:
    folder = add_pooling(make_folder(), LAST)
    file = folder / ("1_Pooling/config.json" if broken == "[]" else "modules.json")
    file.write_text(broken)
    with pytest.raises(CorruptModelError, match="sentence-transformers"):
        read(folder)


@pytest.mark.parametrize("said", ["</s>", {"content": "</s>"}])
def test_an_end_token_is_added_where_the_tokenizer_says_so(
    make_folder: MakeFolder, said: Any
) -> None:
    folder = add_pooling(make_folder(), LAST)
    settings = {"add_eos_token": True, "eos_token": said}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read(folder) == Pooling("last", suffix=(2,))


def test_an_end_token_of_the_post_processor_is_found(make_folder: MakeFolder) -> None:
    folder = add_pooling(make_folder(eos_token_id=2), LAST)
    told = json.loads((folder / "tokenizer.json").read_text())
    template = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
    specials = {
        name: {"id": name, "ids": [i], "tokens": [name]} for i, name in ((1, "<s>"), (2, "</s>"))
    }
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": template,
        "special_tokens": specials,
    }
    (folder / "tokenizer.json").write_text(json.dumps(told))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    assert read(folder) == Pooling("last", suffix=(2,))
    assert Tokenizer.from_file(folder).encode("a")[0] == 1


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"qwen3.pooling_type": 0}, None),
        ({"qwen3.pooling_type": 1}, Pooling("mean", True)),
        ({"qwen3.pooling_type": 3}, Pooling("last", True)),
        (
            {
                "qwen3.pooling_type": 3,
                "tokenizer.ggml.add_eos_token": True,
                "tokenizer.ggml.eos_token_id": 2,
            },
            Pooling("last", True, (2,)),
        ),
    ],
)
def test_gguf_metadata_are_read(
    make_folder: MakeFolder, metadata: dict[str, Any], expected: Pooling | None
) -> None:
    tokenizer = Tokenizer.from_file(make_folder())
    assert gguf_pooling({"general.architecture": "qwen3", **metadata}, tokenizer) == expected


@pytest.mark.parametrize(
    ("more", "said"),
    [({"x.pooling_type": 2}, "type 2"), ({"x.attention.causal": False}, "later tokens")],
)
def test_a_fault_of_a_gguf_file_is_told(
    make_folder: MakeFolder, more: dict[str, Any], said: str
) -> None:
    tokenizer = Tokenizer.from_file(make_folder())
    found = gguf_pooling({"general.architecture": "x", "x.pooling_type": 3, **more}, tokenizer)
    assert found is not None
    assert said in found.fault


def test_a_folder_without_an_output_layer_is_loaded(make_folder: MakeFolder) -> None:
    folder = add_pooling(make_folder(), LAST)
    whole = load(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    trunk = {n.removeprefix("model."): w for n, w in weights.items() if n != "lm_head.weight"}
    save_file(trunk, file)
    loaded = load(folder)
    assert loaded.pooling == Pooling("last")
    expected = dict(tree_flatten(whole.model.parameters()))
    found = dict(tree_flatten(loaded.model.parameters()))
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    for name, values in found.items():
        np.testing.assert_array_equal(np.array(values), np.array(expected[name]))
