"""`sgl-mlx doctor --report`: what is in it, what is not, and how it ends."""

from __future__ import annotations

import getpass
import json
import os
import platform
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.benchmarks.micro.engine import EngineBench
from sgl_mlx.benchmarks.micro.paired_runs import Pair
from sgl_mlx.cli.doctor import measure
from sgl_mlx.cli.doctor.report import REPORT_SECTIONS, write
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.metal_kernels import build, model_heads, tune
from sgl_mlx.metal_kernels.dispatch import CutOvers
from tests.models.conftest import LLAMA, random_weights, write_folder

USER, FULL_NAME, HOST = "janedoe77", "Jane Quux", "quux-book"
PAIR = Pair("decode B=1", "tok/s", (20.0,), (10.0,), 0.95)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user whose name, host and folders must not be told, with a model in it."""
    home = tmp_path / USER
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    entry = SimpleNamespace(pw_name=USER, pw_gecos=f"{FULL_NAME},,,")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: entry)
    for module, name in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: f"{HOST}.lan")
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def model(home: Path) -> str:
    config = LLAMA.full_config()
    folder = home / "Secret Client"
    folder.mkdir()
    return str(write_folder(folder / "toy", config, random_weights(config)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's rows, without the time they take."""

    def pairs(self: EngineBench) -> Iterator[Pair]:
        yield PAIR

    monkeypatch.setattr(EngineBench, "pairs", pairs)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Metal that refuses every kernel, in words that name a file of the user."""

    def refuse(**_: Any) -> Any:
        def launch(**_: Any) -> None:
            raise RuntimeError(f"/Users/{USER}/tmp/k.metal:3: error | on {HOST}\nno such thing")

        return launch

    class Kernels(build.Kernels):
        def __init__(self) -> None:
            super().__init__(refuse)

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(build, "Kernels", Kernels)
    monkeypatch.setattr(tune.Sweep, "run", lambda self: CutOvers(((0, 77),)))
    case = next(model_heads.cases("smollm2-135m"))
    monkeypatch.setattr(model_heads, "all_cases", lambda: [case])
    monkeypatch.setattr(model_heads, "MODELS", {"smollm2-135m": model_heads.MODELS["smollm2-135m"]})


@pytest.fixture
def without_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)


def assert_nothing_personal(text: str, home: Path) -> None:
    for word in (USER, FULL_NAME, HOST, "Secret Client", str(home), str(home.parent), "/Users/"):
        assert word.casefold() not in text.casefold(), word


@pytest.mark.usefixtures("quick", "metal")
def test_the_file_and_the_json_hold_all_sections_and_nothing_personal(
    sgl, home: Path, model: str
) -> None:
    result = sgl("doctor", "--report", "--json", "--model", model)
    assert result.exit_code == 0, result.output
    text = (home / "sgl-mlx-report.md").read_text("utf-8")
    found = json.loads(result.stdout)
    assert [section["title"] for section in found["sections"]] == list(REPORT_SECTIONS)
    assert all(f"## {title}\n" in text for title in ("Checks", *REPORT_SECTIONS))
    assert "0 of 1 specialisations agree" in text
    assert "| smollm2-135m | " in text
    assert "| decode B=1 | 20.0 | 10.0 | tok/s | 2.00x |" in text
    assert "k.metal:3: error \\| on HOST no such thing" in text
    assert "…/toy" in text
    assert {row["name"] for row in found["checks"]} >= {"system", "model"}
    for written in (text, result.stdout):
        assert_nothing_personal(written, home)


@pytest.mark.usefixtures("quick", "without_metal")
def test_without_metal_it_says_so_and_how_far_it_is(sgl, home: Path, model: str) -> None:
    result = sgl("doctor", "--report", "mine.md", "--model", model)
    assert result.exit_code == 0, result.output
    assert (home / "mine.md").read_text("utf-8").count(measure.NO_METAL) == 2
    assert result.stdout == "mine.md: read it, then paste it into an issue\n"
    assert "loading the model" in result.stderr
    assert "engine against mlx-lm: decode B=1: 2.00x" in result.stderr


def test_rows_are_measured_until_the_time_is_over(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(self: EngineBench) -> Iterator[Pair]:
        while True:
            yield PAIR

    monkeypatch.setattr(EngineBench, "pairs", endless)
    section = measure.speed(model, 0.0, lambda text: None)
    assert len(section.rows) == 1


def test_a_measurement_that_fails_is_told_and_the_others_go_on() -> None:
    def fail() -> measure.Section:
        raise RuntimeError("out of memory")

    assert measure.guarded("Speed", fail).summary == "failed: out of memory"


def test_a_model_that_is_missing_leaves_the_rest_of_the_report(sgl, home: Path) -> None:
    result = sgl("doctor", "--report", "--model", "nowhere")
    assert result.exit_code == 0
    assert "failed: no model 'nowhere'" in (home / "sgl-mlx-report.md").read_text("utf-8")


def test_ctrl_c_ends_it_with_130_and_leaves_no_file(
    sgl, home: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: EngineBench) -> Iterator[Pair]:
        yield PAIR
        raise KeyboardInterrupt

    monkeypatch.setattr(EngineBench, "pairs", interrupted)
    result = sgl("doctor", "--report", "--model", model)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert [file.name for file in home.iterdir() if file.is_file()] == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write("text", tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == "text"
    with pytest.raises(BenchmarkError, match=r"cannot write .*nowhere/a\.md"):
        write("text", tmp_path / "nowhere" / "a.md")
    assert os.listdir(tmp_path) == ["a.md"]
