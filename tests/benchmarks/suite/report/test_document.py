"""A document is read from a file of its own or from the end of a run's output, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_mlx.benchmarks.peers.ours import Ours
from sgl_mlx.benchmarks.suite.report.document import describe, read
from sgl_mlx.errors import BenchmarkError
from tests.benchmarks.suite.example import document


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(document()),
        json.dumps(document(), indent=2),
        f"a table\n  of lines\n{json.dumps(document())}\n",
    ],
)
def test_what_a_run_printed_is_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text, "utf-8")
    assert read(file) == document()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"workloads": 3}', '{"geomean": {}}'])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text, "utf-8")
    with pytest.raises(BenchmarkError, match=r"other\.json holds no document of `sgl-mlx bench"):
        read(file)


def test_bytes_that_are_no_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BenchmarkError, match="holds no document"):
        read(file)
    with pytest.raises(BenchmarkError, match=r"cannot read .*nowhere: No such file"):
        read(tmp_path / "nowhere")


def test_the_instruction_sets_of_each_system_are_named() -> None:
    ours, silent = Ours({}), Ours({}, name="silent")
    ours.instruction_sets, silent.instruction_sets = "AVX2", ""
    found = describe([], 0.1, 1, "sgl-mlx bench suite", [ours, silent])
    assert found["instruction_sets"] == {"ours": "AVX2"}
