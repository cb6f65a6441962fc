"""The shape of LLaVA-Bench, and the command that measures it, on a toy."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from click.testing import CliRunner

from sgl_mlx.benchmarks.micro.llava import questions
from sgl_mlx.cli import main
from tests.runtime.llava import write_llava


def test_pictures_have_as_many_questions_as_in_llava_bench(tmp_path: Path) -> None:
    prompts = questions(tmp_path, 24)
    asked = Counter(prompt[1] for prompt in prompts)
    assert Counter(asked.values()) == {2: 12, 3: 7, 4: 2, 1: 2, 5: 1}
    assert len(set(prompts)) == 60


def test_the_command_shows_phases_hit_rate_and_memory_of_any_llava(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "llava")
    shape = ["--images", "2", "--new-tokens", "2"]
    done = CliRunner().invoke(main, ["bench", "llava", "--model", str(folder), *shape])
    assert done.exit_code == 0, done.stderr
    *_, line = done.stdout.splitlines()
    document = json.loads(line)
    phases = ["open", "process", "encode", "prefill", "decode", "rest"]
    assert list(document["with"]["phases"]) == list(document["without"]["phases"]) == phases
    assert document["with"]["hit_rate"] == document["with"]["best_hit_rate"]
    assert f"took {document['peak_memory_mb']:,} MB at most" in done.stdout
    assert all(phase in done.stdout for phase in phases)


def test_an_unknown_tower_is_refused_with_those_there_are() -> None:
    done = CliRunner().invoke(main, ["bench", "llava", "--tower", "tall"])
    assert done.exit_code == 2
    assert "known are clip-l-336" in done.stderr
