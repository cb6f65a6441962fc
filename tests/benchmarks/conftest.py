"""The toy made of words, and a llama-server that is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.tokenizer import Tokenizer
from tests.benchmarks.toy_words import write_toy

FAKE = Path(__file__).with_name("fake_llama_server.py")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("models") / "words")


@pytest.fixture(scope="session")
def words(toy_folder: Path) -> Words:
    return Words(Tokenizer.from_file(toy_folder))


@pytest.fixture
def fake_server(tmp_path: Path, toy_folder: Path) -> Callable[[str], Path]:
    """`fake_server(fault)`: a program to start as llama-server; with "" it has no fault."""

    def make(fault: str) -> Path:
        program = tmp_path / "llama-server"
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "{toy_folder}" "{fault}" "$@"\n'
        )
        program.chmod(0o755)
        return program

    return make
