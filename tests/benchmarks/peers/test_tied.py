"""A server ends with the process that started it, whatever ends that one and whenever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sgl_mlx.benchmarks.peers.tied import CANNOT_START, launcher
from tests.patience import PATIENCE, eventually

PARENTS = Path(__file__).with_name("killed_parents.py")
KILLS = 30

"""Seconds; far more than anything here takes on a loaded machine."""

Parents = Callable[..., subprocess.Popen[bytes]]

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


@pytest.fixture
def token() -> str:
    """A word that only the processes of one test have in their command lines."""
    return uuid.uuid4().hex


@pytest.fixture
def parents(token: str) -> Iterator[Parents]:
    """`parents(sign, *moments)` starts `killed_parents`; a test that fails leaves none of them."""
    started = []

    def start(sign: signal.Signals, *moments: float) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(PARENTS), str(sign.value), *map(str, moments)],
            env={**os.environ, "TOKEN": token},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def commands(token: str) -> list[str]:
    """The command lines that hold the token; processes that have ended have none."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue  # it ended meanwhile
    return [command for command in found if token in command]


def servers(token: str) -> list[str]:
    return [command for command in commands(token) if "tied.py" not in command]


@needs_proc
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_parents_that_end_at_any_moment_leave_nothing(
    token: str, parents: Parents, sign: signal.Signals
) -> None:
    moments = [random.random() ** 2 * 0.3 for _ in range(KILLS)]  # most while it starts
    process = parents(sign, *moments)
    assert process.wait(PATIENCE) == 0
    eventually(lambda: not commands(token), "no process is left")


@needs_proc
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_server_that_runs_ends_with_its_parent(
    token: str, parents: Parents, sign: signal.Signals
) -> None:
    process = parents(sign)
    eventually(lambda: bool(servers(token)), "the server runs")
    process.send_signal(sign)
    process.wait(PATIENCE)
    eventually(lambda: not commands(token), "no process is left")


@needs_proc
def test_children_of_the_server_end_too(token: str) -> None:
    sleep = "import time; time.sleep(600)"
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    read, write = os.pipe()
    process = subprocess.Popen(
        launcher(read, [sys.executable, "-c", nested, sleep, token]),
        pass_fds=(read,),
        start_new_session=True,
    )
    eventually(lambda: len(servers(token)) == 2, "both processes run")
    os.close(write)
    process.wait(PATIENCE)
    os.close(read)
    eventually(lambda: not commands(token), "no process is left")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_the_launcher_ends_as_the_command_does(script: str, code: int) -> None:
    assert ended([sys.executable, "-c", script]).returncode == code


def test_a_command_that_cannot_be_started_is_said(tmp_path: Path) -> None:
    done = ended([str(tmp_path / "nothing")])
    assert done.returncode == CANNOT_START
    assert done.stdout == f"{tmp_path}/nothing cannot be started: No such file or directory\n"


def ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command run to its end by the launcher."""
    read, write = os.pipe()
    try:
        return subprocess.run(
            launcher(read, command),
            pass_fds=(read,),
            start_new_session=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        os.close(read)
        os.close(write)
