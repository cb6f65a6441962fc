"""One run of a workload on a system: all programs of the workload, a fixed number at a time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.peers.system import Session, System
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Row, Size, Workload

Watch = Callable[[str, int, int], None]
"""Progress callback, called with the run's name, finished programs, and all programs."""


@dataclass(frozen=True)
class Run:
    """Times and counts of one run.

    Attributes:
        programs: number of programs that ran.
        latencies: seconds of each program.
        first: seconds to the first output of each call.
        work: counts that must be equal on all systems; see `Usage.work`.
        details: counts and seconds that only this system has.
    """

    system: str
    seconds: float
    programs: int
    latencies: tuple[float, ...]
    first: tuple[float, ...]
    work: Mapping[str, int]
    cached_tokens: int
    details: Mapping[str, Any]

    @property
    def speed(self) -> float:
        """Programs per second."""
        return self.programs / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "seconds": round(self.seconds, 3),
            "programs": self.programs,
            "programs_per_second": round(self.speed, 3),
            "latency_p50": percentile(self.latencies, 50),
            "latency_p95": percentile(self.latencies, 95),
            "ttft_p50": percentile(self.first, 50),
            "ttft_p95": percentile(self.first, 95),
            **self.work,
            "cached_tokens": self.cached_tokens,
            **self.details,
        }


def run_workload(
    system: System,
    workload: Workload,
    rows: Sequence[Row],
    size: Size,
    words: Words,
    watch: Watch = lambda name, done, total: None,
) -> Run:
    """Run a workload on a new session of a system, and measure it.

    Args:
        rows: arguments of the workload's program, one row per run of the program.
        watch: called with the progress.

    Raises:
        PeerError: when the system fails; none of its processes is left running. Our engine raises
            errors of its own.
    """
    name = f"{workload.name} on {system.name}"
    watch(name, 0, len(rows))
    with system.session(workload, size, words) as session:
        started = time.perf_counter()
        latencies = _run_all(
            session, rows, workload.concurrency, lambda done: watch(name, done, len(rows))
        )
        seconds = time.perf_counter() - started
        usage = session.usage
        return Run(
            system.name,
            seconds,
            len(rows),
            tuple(latencies),
            tuple(usage.first_seconds),
            usage.work,
            usage.cached_tokens,
            session.details(),
        )


def _run_all(
    session: Session, rows: Sequence[Row], concurrency: int, progress: Callable[[int], None]
) -> list[float]:
    done = itertools.count(1)

    def timed(row: Row) -> float:
        started = time.perf_counter()
        session.run(row)
        progress(next(done))
        return time.perf_counter() - started

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="bench")
    try:
        futures = [pool.submit(timed, row) for row in rows]
        ended, others = wait(futures, return_when=FIRST_EXCEPTION)
        for future in ended if others else ():
            future.result()  # raises the error at once, though other runs still wait
        return [future.result() for future in futures]
    finally:
        # After a failure or Ctrl-C, calls may still wait for answers. They fail as soon as the
        # session ends.
        pool.shutdown(wait=False, cancel_futures=True)


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile of seconds, rounded to 0.1 ms; None if there are no values."""
    if not values:
        return None
    if len(values) == 1:
        return round(values[0], 4)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 4)
