"""A rank that is lost, or does not fit, ends all ranks with one clear error to every request."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.models.test_lora import matrices, write_adapter
from tests.runtime.conftest import write_toy as write_llama
from tests.runtime.ranks.launcher import Launched, lines, python
from tests.runtime.ranks.toys import write_toy
from tests.runtime.ranks.waiting import REQUESTS

WAITING = python("tests.runtime.ranks.waiting")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "toy")


def check_all_ended(ranks: Launched, reason: str) -> None:
    """Every request ended with one error that has this reason; no process ended well."""
    codes = ranks.codes()
    assert 0 not in codes, codes
    errors = [line["error"] for line in lines(ranks.output())]
    assert len(errors) == REQUESTS, ranks.output(0, "err")
    assert all(reason in error for error in errors), errors


def test_a_rank_that_is_killed_ends_every_request(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", matrices(folder), "PEFT")  # two engines at once
    with Launched(tmp_path, [*WAITING, str(folder), "", str(adapter)]) as ranks:
        ranks.wait_for("running")
        ranks.signal(1, signal.SIGKILL)
        check_all_ended(ranks, "rank 1 on ")


def test_a_rank_that_is_stopped_ends_every_request(folder: Path, tmp_path: Path) -> None:
    with Launched(tmp_path, [*WAITING, str(folder)]) as ranks:
        ranks.wait_for("running")
        ranks.signal(1, signal.SIGSTOP)
        check_all_ended(ranks, "nothing was heard from it")


def test_when_rank_0_stands_still_no_process_is_left(folder: Path, tmp_path: Path) -> None:
    with Launched(tmp_path, [*WAITING, str(folder)]) as ranks:
        ranks.wait_for("running")
        ranks.signal(0, signal.SIGSTOP)
        codes = ranks.codes()
        assert codes == [-signal.SIGKILL, 1]
        assert "rank 0 on " in ranks.output(1, "err")


@pytest.mark.parametrize("what", ["weights", "version"])
def test_ranks_that_differ_are_refused_at_the_start(
    what: str, folder: Path, tmp_path: Path
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "model").symlink_to(folder)
    (tmp_path / "there" / "model").symlink_to(folder)
    changes = {0: {"cwd": str(tmp_path / "here")}, 1: {"cwd": str(tmp_path / "there")}}
    if what == "weights":
        (tmp_path / "there" / "model").unlink()
        write_toy(tmp_path / "there" / "model", "qwen2")
    else:
        other = tmp_path / "older" / "sgl_mlx-0.0.1.dist-info"
        other.mkdir(parents=True)
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: sgl-mlx\nVersion: 0.0.1\n")
        root = Path(__file__).parents[3]
        changes[1]["PYTHONPATH"] = f"{other.parent}:{root}"
    with Launched(tmp_path / "run", [*WAITING, "model"], changes=changes) as ranks:
        codes = ranks.codes()
        told = ranks.output(0, "err")
    assert 0 not in codes, told
    assert {"weights": "has other weights", "version": "version of sgl-mlx is '0.0.1'"}[
        what
    ] in told
