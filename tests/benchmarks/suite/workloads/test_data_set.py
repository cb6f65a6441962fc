"""`--data`: rows of the user's in place of generated ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS
from sgl_mlx.benchmarks.suite.workloads.data_set import over_data
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.tokenizer import Tokenizer
from tests.benchmarks.toy_words import write_toy

SIZE = Size(0.01)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    return Words(Tokenizer.from_file(write_toy(tmp_path_factory.mktemp("models") / "words")))


def lines(folder: Path, *rows: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in rows))
    return file


def test_a_line_is_a_row_and_what_it_leaves_out_is_generated(tmp_path: Path, words: Words) -> None:
    workload = WORKLOADS["gsm8k"]
    made = workload.rows(words, SIZE)
    file = lines(tmp_path, {"question": "One?"}, "", {"question": "Two?", "tokens": 3}, {})
    found = over_data(workload, file).rows(words, SIZE)
    assert found[0] == {**made[0], "question": "One?"}
    assert found[1] == {**made[1 % len(made)], "question": "Two?", "tokens": 3}
    assert found[2] == made[2 % len(made)]
    assert len(found) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2 is no JSON"),
        ([1], "line 2 is list, it must be an object"),
        ({"qestion": "?"}, "line 2: 'qestion' is none of examples, question, tokens"),
        ({"tokens": "3"}, "line 2: tokens is str, it must be int"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, words: Words, row: Any, said: str) -> None:
    with pytest.raises(BenchmarkError, match=said):
        over_data(WORKLOADS["gsm8k"], lines(tmp_path, {}, row)).rows(words, SIZE)


def test_an_empty_file_is_refused(tmp_path: Path, words: Words) -> None:
    with pytest.raises(BenchmarkError, match="is empty"):
        over_data(WORKLOADS["gsm8k"], lines(tmp_path, "", " ")).rows(words, SIZE)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, words: Words) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        over_data(WORKLOADS["gsm8k"], file).rows(words, SIZE)


def test_the_listed_arguments_are_those_of_the_rows(words: Words, tmp_path: Path) -> None:
    for workload in WORKLOADS.values():
        rows = workload.rows(words, Size(0.01, tmp_path))
        assert set(rows[0]) <= set(workload.program.arg_names), workload.name
