"""The goldens, read and written out as model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.tokenizer import Tokenizer

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["llava", "llava_siglip", "llava_next", "llava_onevision"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Golden:
    """A toy model, and what transformers computes with it for each case."""

    name: str
    config: dict[str, Any]
    processor: dict[str, Any]
    weights: Arrays
    cases: dict[str, Arrays]


@cache
def read_golden(name: str) -> Golden:
    weights: Arrays = {}
    cases: dict[str, Arrays] = {}
    plain: dict[str, Any] = {}
    with np.load(GOLDENS / f"{name}.npz") as file:
        for key, value in file.items():
            head, slash, tail = key.partition("/")
            if not slash:
                plain[key] = json.loads(value.tobytes())
            elif head == "weights":
                weights[tail] = value
            else:
                cases.setdefault(head, {})[tail] = value
    return Golden(name, plain["config"], plain["processor"], weights, cases)


def case_names() -> list[tuple[str, str]]:
    return [(name, case) for name in NAMES for case in read_golden(name).cases]


def write_golden(
    folder: Path,
    golden: Golden,
    weights: Arrays | None = None,
    config: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
) -> Path:
    """A model folder; `files` replaces the preprocessor's file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or golden.config))
    written = {"preprocessor_config.json": golden.processor} if files is None else files
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value))
    save_file(weights or golden.weights, folder / "model.safetensors")
    write_tokenizer(folder, golden.config["text_config"]["vocab_size"])
    return folder


def write_tokenizer(folder: Path, size: int) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"t{n}" for n in range(size - 5)), "<image>", "<video>"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (size - 5), 4, 4],
        "tokenizer.ggml.scores": [-float(n) for n in range(size)],
    }
    Tokenizer.from_gguf(metadata).backend.save(str(folder / "tokenizer.json"))


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a golden's model, changed as told."""

    def make(name: str = "llava", folder: str = "model", **changes: Any) -> Path:
        return write_golden(tmp_path / folder, read_golden(name), **changes)

    return make


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Each golden's model, loaded from a folder in float32."""

    @cache
    def open_toy(name: str) -> LoadedModel:
        folder = write_golden(tmp_path_factory.mktemp("goldens") / name, read_golden(name))
        return load(folder, dtype="float32")

    return open_toy
