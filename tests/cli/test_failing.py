"""`serve --exit-on-failure`: a server whose engine hangs answers with errors and exits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sgl_mlx.benchmarks.peers.server import free_port
from sgl_mlx.cli.failing import FAILED
from tests.patience import PATIENCE
from tests.runtime.conftest import write_toy

HANGING = """
import os, threading
from pathlib import Path
from sgl_mlx.cli import main
from sgl_mlx.runtime.runner import ModelRunner

run, mark = ModelRunner.run, Path(os.environ["HANG_WHEN"])

def run_or_hang(runner, plan):
    if mark.exists():
        threading.Event().wait(600)
    return run(runner, plan)

ModelRunner.run = run_or_hang
main()
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that makes the server's steps hang as soon as it exists."""
    return tmp_path / "hang"


@contextmanager
def serving(folder: Path, mark: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command = [sys.executable, "-c", HANGING, "serve", str(folder), "--port", str(port)]
    command += ["--engine-option", "watchdog_seconds=0.3", "--exit-on-failure"]
    environment = {**os.environ, "HANG_WHEN": str(mark)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        yield f"http://127.0.0.1:{port}", process
        process.kill()


def wait_until_up(url: str, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.TransportError:
            continue
        return
    raise AssertionError(process.stderr and process.stderr.read())


def test_a_server_whose_engine_hangs_exits(tmp_path: Path, mark: Path) -> None:
    asked = {"text": "ab", "sampling_params": {"max_new_tokens": 4}}
    with serving(write_toy(tmp_path / "toy"), mark) as (url, process):
        wait_until_up(url, process)
        mark.touch()
        answer = httpx.post(f"{url}/generate", json=asked, timeout=PATIENCE)
        assert answer.status_code == 503
        assert process.wait(PATIENCE) == FAILED
        assert process.stderr is not None
        assert f"exiting with code {FAILED}" in process.stderr.read()
