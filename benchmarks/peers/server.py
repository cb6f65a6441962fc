"""A server as a child process: started, waited for until it is up, and always ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from sgl_mlx.benchmarks.peers.system import PeerError
from sgl_mlx.benchmarks.peers.tied import launcher

HOST = "127.0.0.1"
_PATIENCE = 5.0
"""Seconds that a process has to end after SIGTERM, before SIGKILL."""


@contextmanager
def running(
    name: str,
    command: Callable[[int], Sequence[str]],
    health: str,
    start_timeout: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Start a server, wait until it is up, and yield its address: `http://127.0.0.1:port`.

    Args:
        name: the server's name in error messages.
        command: returns the command line, given a free port.
        health: path that answers 200 once the server takes requests.
        start_timeout: seconds that the server has to come up.
        environment: variables added to this process's environment.

    Raises:
        PeerError: when the server cannot be started, ends early, or is not up in time. The message
            has the last lines of its output.
    """
    with TemporaryDirectory() as folder:
        log, port = Path(folder, "log"), free_port()
        with _process(command(port), log, environment or {}) as process:
            try:
                address = f"http://{HOST}:{port}"
                _wait(name, process, address + health, log, start_timeout)
                yield address
            except Exception as error:
                if _has_ended(process):
                    raise PeerError(f"{name} died{_last_words(process, log)}") from error
                raise


@contextmanager
def _process(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ends with the context, or with this process (see `tied`).

    If an interrupt comes while the process starts, closing the pipe ends the process.
    """
    with log.open("wb") as output, _pipe() as pipe:
        process = subprocess.Popen(
            launcher(pipe, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=(pipe,),
            start_new_session=True,  # so that all its children can be ended with it
        )
        try:
            yield process
        finally:
            end(process)


@contextmanager
def _pipe() -> Iterator[int]:
    """Open a pipe and yield the read end; leaving the context closes both ends."""
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb"):
        yield read


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its children: SIGTERM first, then SIGKILL."""
    for sign, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait up to half a second for a process to end, and return True if it has ended.

    The wait is needed because the connections of a dying process close shortly before it ends.
    """
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    return process.poll() is not None


def _wait(name: str, process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError("it ended while starting")
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise PeerError(f"{name} was not up after {timeout:.0f} s{_last_words(process, log)}")


def _last_words(process: subprocess.Popen[bytes], log: Path) -> str:
    code = process.poll()
    lines = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    ended = "" if code is None else f" with exit code {code}"
    return ended + (": " + " | ".join(lines) if lines else "")
