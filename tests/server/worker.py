"""`sgl-mlx serve` as a child process that can be killed, stopped, and started again."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import httpx

from sgl_mlx.benchmarks.peers.our_server import serve_command
from sgl_mlx.benchmarks.peers.server import end, free_port
from tests.patience import PATIENCE

_DELAY = 6
"""Seconds in which a worker still takes requests though its health checks, one a second, fail."""


class Worker:
    """A server of the model in a folder; `url` stays the same when it is started again.

    It runs two requests at a time, so that more of them wait and it is at work for a while.
    """

    def __init__(self, model: Path, log: Path) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        options = {
            "model_path": str(model),
            "max_total_tokens": 4000,
            "max_running_requests": 2,
            "speculate": "off",
        }
        self._command = [*serve_command(options, self._port), "--drain-delay", str(_DELAY)]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(timeout=PATIENCE)

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text("utf-8", "replace")[-2000:]
            assert time.monotonic() < deadline, "the worker did not come up"
            time.sleep(0.1)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        """Send what Ctrl-C sends: it fails health checks, finishes its requests, and ends."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)

    def ends(self) -> int | None:
        """Return its exit code, or None if it has not ended."""
        assert self._process is not None
        return self._process.poll()

    def close(self) -> None:
        self._http.close()
        if self._process is not None:
            end(self._process)

    def running(self) -> int:
        """Return the number of its requests now."""
        return int(self._http.get(f"{self.url}/get_load").json()[0]["num_reqs"])

    def _answers(self) -> bool:
        try:
            return self._http.get(f"{self.url}/health").is_success
        except httpx.HTTPError:
            return False
