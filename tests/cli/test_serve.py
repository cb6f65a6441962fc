"""`sgl-mlx serve` as a process of its own: it says where it is, answers, drains and ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.patience import PATIENCE, eventually
from tests.runtime.conftest import toy_folder

__all__ = ["toy_folder"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(toy_folder: Path) -> Iterator[Start]:
    """`start(*options)` runs the command on the toy."""
    running: list[subprocess.Popen[str]] = []

    def _start(*options: str, model: str = str(toy_folder)) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from sgl_mlx.cli import main; main()", "serve"]
        running.append(
            subprocess.Popen(
                [*command, *([model] if model else ()), "--port", "0", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        )
        return running[-1]

    yield _start
    for process in running:
        process.kill()
        process.communicate()


def invitation(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Return the address and the command of the line that says the server is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"ready at (\S+)  try: (.*)", line)
    assert found, line
    return found[1], shlex.split(found[2])


def asked(command: list[str]) -> httpx.Response:
    """Do what a command of curl would."""
    name, url, *options = command
    assert name == "curl"
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for flag, value in given if flag == "-H")
    [body] = [value for flag, value in given if flag == "-d"]
    return httpx.post(url, headers=headers, content=body, timeout=PATIENCE)


def test_a_line_says_what_to_type_and_ctrl_c_ends_it(start: Start) -> None:
    process = start("--api-key", "secret")
    url, command = invitation(process)
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/v1/models").status_code == 401
    answer = asked(command)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 0
    assert process.stderr is not None
    assert "POST /v1/completions 200" in process.stderr.read()


def test_an_address_that_is_taken_is_said_before_the_model_is_loaded(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert "cannot listen on 127.0.0.1" in said


STREAM = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_a_stream_finish(start: Start, sign: signal.Signals) -> None:
    process = start()
    url, _ = invitation(process)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(sign)
        assert "data: [DONE]" in list(lines)
    assert process.wait(timeout=PATIENCE) == 0


def test_a_drain_delay_fails_health_checks_and_still_takes_requests(start: Start) -> None:
    process = start("--drain-delay", "5")
    url, command = invitation(process)
    process.send_signal(signal.SIGINT)
    health = httpx.get(f"{url}/health")
    while health.status_code == 200:  # or the server ends, and this raises
        health = httpx.get(f"{url}/health")
    assert (health.status_code, health.text) == (503, "the server is ending\n")
    assert asked(command).status_code == 200
    assert process.wait(timeout=PATIENCE) == 0


def test_a_second_ctrl_c_stops_at_once(start: Start) -> None:
    process = start()
    url, _ = invitation(process)
    long = {**STREAM, "n": 64}
    with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)

        def ends_at_the_next() -> bool:
            time.sleep(0.5)  # a busy process would see two signals at once as one
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        eventually(ends_at_the_next, "the server stops at once")
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
