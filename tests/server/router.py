"""The real sglang-router as a child process, over workers on loopback."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgl_mlx.benchmarks.peers.server import end, free_port
from tests.patience import PATIENCE, eventually

OPTIONS = {
    "--policy": "cache_aware",
    "--cache-threshold": 0.1,
    "--balance-abs-threshold": 32,
    "--balance-rel-threshold": 1.2,
    "--worker-startup-check-interval": 1,
    "--health-check-interval-secs": 1,
    "--health-failure-threshold": 1,
    "--health-success-threshold": 1,
    "--cb-timeout-duration-secs": 1,
    "--cb-success-threshold": 1,
    "--log-level": "warn",
}
"""Options of the router: those that docs/many-macs.md recommends, with shorter intervals."""


class Router:
    """A router that runs: its address, its workers, and what it says of them."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    def workers(self) -> dict[str, bool]:
        """Each worker's address, and True if the router takes it for healthy."""
        listed = self._call("GET", "/workers").json()["workers"]
        return {worker["url"]: worker["is_healthy"] for worker in listed}

    def add(self, url: str) -> None:
        assert self._call("POST", "/workers", json={"url": url}).status_code == 202

    def remove(self, url: str) -> None:
        listed = self._call("GET", "/workers").json()["workers"]
        [id] = [worker["id"] for worker in listed if worker["url"] == url]
        assert self._call("DELETE", f"/workers/{id}").is_success

    def until(self, workers: dict[str, bool]) -> None:
        """Wait until the router sees exactly these workers, healthy or not as given."""
        eventually(lambda: self.workers() == workers, f"the router sees {workers}")

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(
            method, self.url + path, timeout=PATIENCE, headers=self._headers, **more
        )


@contextmanager
def router_over(urls: Sequence[str], log: Path, **options: Any) -> Iterator[Router]:
    """Run a router over the workers at `urls`, and yield it when it sees all of them healthy.

    Args:
        log: file for the router's output.
        options: options of the router, that replace those of `OPTIONS`.
    """
    if importlib.util.find_spec("sglang_router") is None:
        pytest.skip("no sglang-router here (pip install sglang-router)")
    port = free_port()
    own = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    given = {**OPTIONS, **own, "--port": port, "--prometheus-port": free_port()}
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += [str(x) for pair in given.items() for x in pair] + ["--worker-urls", *urls]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            router = Router(f"http://127.0.0.1:{port}", options.get("api_key"))
            _wait_until_up(process, router, log)
            router.until(dict.fromkeys(urls, True))
            yield router
        finally:
            end(process)


def _wait_until_up(process: subprocess.Popen[bytes], router: Router, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text("utf-8", "replace")[-2000:]
        try:
            router.workers()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the router was not up: {log.read_text('utf-8', 'replace')[-2000:]}")
