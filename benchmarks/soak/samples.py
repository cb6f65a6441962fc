"""Samples of a server's memory and load, taken while a soak goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import psutil

from sgl_mlx.errors import BenchmarkError

SETTLED = 600.0
"""Seconds after which a server's memory should no longer grow."""


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        seconds: time since the soak began.
        rss: resident memory of the server, in bytes.
        threads: number of the server's threads.
        files: number of the server's open files and sockets.
        running, waiting: sequences that run and wait.
        used_slots: slots of the KV pool that are neither free nor in the cache.
    """

    seconds: float
    rss: int
    threads: int
    files: int
    running: int
    waiting: int
    used_slots: int


class Sampler:
    """Measurements of a server that this process started.

    Args:
        process: the server's process.
        slots: slots of the KV pool.
    """

    def __init__(
        self, http: httpx.AsyncClient, key: str, process: psutil.Process, slots: int
    ) -> None:
        self._http = http
        self._headers = {"authorization": f"Bearer {key}"}
        self._process = process
        self._slots = slots
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    async def take_all(self, interval: float, told: Callable[[Sample], None]) -> None:
        """Take a sample each `interval` seconds, until the task is cancelled.

        A sample that the server does not answer in time is left out.
        """
        while True:
            with suppress(httpx.HTTPError):
                self.samples.append(await self.take())
                told(self.samples[-1])
            await asyncio.sleep(interval)

    async def take(self) -> Sample:
        """Take one sample.

        Raises:
            httpx.HTTPError: the server does not answer.
        """
        answer = await self._http.get("/server_info", headers=self._headers)
        stats = answer.raise_for_status().json()["stats"]
        with self._process.oneshot():
            return Sample(
                round(time.monotonic() - self._began, 1),
                self._process.memory_info().rss,
                self._process.num_threads(),
                self._process.num_fds(),
                stats["running"],
                stats["waiting"],
                self._slots - stats["free_slots"] - stats["cached_slots"],
            )

    async def at_rest(self, patience: float = 60.0) -> Sample:
        """Return a sample without any request in the engine, or after `patience` seconds any."""
        deadline = time.monotonic() + patience
        while True:
            sample = await self.take()
            if not (sample.running or sample.waiting) or time.monotonic() > deadline:
                return sample
            await asyncio.sleep(0.2)


def server_process() -> psutil.Process:
    """Return the largest process that this process has started, which is the server.

    Raises:
        BenchmarkError: this process has started none.
    """
    started = psutil.Process().children(recursive=True)
    if not started:
        raise BenchmarkError("the server's process has ended")
    return max(started, key=lambda process: process.memory_info().rss)


def memory(samples: Sequence[Sample]) -> Mapping[str, Any]:
    """Summarise resident memory: once settled (see `SETTLED`), at the end, and the growth between.

    Both figures are medians over five minutes, because memory that is used and freed, such as a
    long prompt's, comes and goes. A soak shorter than twice `SETTLED` is settled after half its
    time, and its medians are over a quarter of its time.
    """
    if not samples:
        return {}
    end = samples[-1].seconds
    settled, window = min(SETTLED, end / 2), min(SETTLED / 2, end / 4)
    first = _median(samples, settled, settled + window)
    last = _median(samples, end - window, end)
    return {
        "settled_seconds": round(settled, 1),
        "settled_rss": first,
        "end_rss": last,
        "growth": round(last / first - 1, 4),
        "peak_rss": max(sample.rss for sample in samples),
        "samples": [asdict(sample) for sample in samples],
    }


def _median(samples: Sequence[Sample], start: float, end: float) -> int:
    """Return the median memory of the samples from `start` to `end`.

    If there are none, return the memory of the latest sample before `end`.
    """
    found = sorted(sample.rss for sample in samples if start <= sample.seconds <= end)
    before = [sample.rss for sample in samples if sample.seconds <= end]
    return found[len(found) // 2] if found else before[-1]
