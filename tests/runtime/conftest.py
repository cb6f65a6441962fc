"""Engines: on a toy with random weights, made anew with any options, and one on the real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.runtime.engine import Engine
from tests.embedded import open_embedded
from tests.models.conftest import LLAMA, write_folder
from tests.models.toy import toy_model
from tests.runtime.hybrids import Open, open_hybrid
from tests.runtime.llava import Folders, write_llava
from tests.runtime.llava import Open as OpenLlava

MakeEngine = Callable[..., Engine]


def write_toy(folder: Path) -> Path:
    """A small llama with random weights; its tokens 3 to 258 are the bytes."""
    config = LLAMA.full_config()
    weights = dict(tree_flatten(toy_model("llama", config).parameters()))
    arrays = {name: np.array(x) for name, x in weights.items()}
    return write_folder(folder, config, arrays)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_toy`."""
    return write_toy(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def make_engine(toy_folder: Path) -> Iterator[MakeEngine]:
    """`make_engine(**options)` opens the toy; shut down in the end."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(Engine(str(toy_folder), **{"max_total_tokens": 2000, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> Iterator[Engine]:
    """The toy with default options, shared by all tests."""
    with Engine(str(toy_folder), max_total_tokens=4000) as engine:
        yield engine


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Engine]:
    """The embedded model in float32, shared by all tests."""
    with open_embedded(max_total_tokens=12000) as engine:
        yield engine


@pytest.fixture
def open_toy(toy: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """`open_toy(architecture, **options)` opens a toy with recurrent layers (`hybrids`).

    Nothing is compiled meanwhile: on the CPU, `mx.compile` calls a C++ compiler for every shape.
    """
    engines: list[Engine] = []

    def make(architecture: str, **options: Any) -> Engine:
        engines.append(open_hybrid(architecture, toy.tokenizer, monkeypatch, **options))
        return engines[-1]

    mx.disable_compile()
    yield make
    for engine in engines:
        engine.shutdown()
    mx.enable_compile()


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A toy LLaVA's folder by its golden's name."""
    root = tmp_path_factory.mktemp("llava")
    return cache(lambda name: write_llava(root / name, name))


@pytest.fixture
def open_llava(llava_folder: Folders) -> Iterator[OpenLlava]:
    """`open_llava(name="llava", **options)`; shut down in the end."""
    engines: list[Engine] = []

    def make(name: str = "llava", **options: Any) -> Engine:
        engines.append(Engine(str(llava_folder(name)), **{"max_total_tokens": 1000, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()
