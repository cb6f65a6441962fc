"""Comparison of systems on the same workloads, run in turn.

Times are compared pair by pair, and only if both systems did the same work: the same number of
calls, prompt tokens and output tokens, each as counted by the system itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.benchmarks.peers.system import System
from sgl_mlx.benchmarks.suite.run import Run, Watch, run_workload
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size, Workload
from sgl_mlx.errors import SglError


@dataclass
class Comparison:
    """All runs of one workload, in which `ours` is compared with each other system.

    Attributes:
        ours: name of our system.
        runs: the runs of each system that did not fail, by the system's name.
        failures: why a system failed or could not run, by the system's name.
        peers: names of the other systems.
    """

    workload: Workload
    ours: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def peers(self) -> list[str]:
        return [name for name in (*self.runs, *self.failures) if name != self.ours]

    def ratio(self, peer: str) -> float | None:
        """Return the median of `peer`'s seconds over ours, run by run; None if not comparable."""
        if self.not_compared(peer) is not None:
            return None
        pairs = zip(self.runs[peer], self.runs[self.ours], strict=True)
        return statistics.median(theirs.seconds / ours.seconds for theirs, ours in pairs)

    def not_compared(self, peer: str) -> str | None:
        """Return the reason why `peer` has no ratio; None if it has one."""
        for name in (peer, self.ours):
            if name in self.failures:
                return self.failures[name]
        for theirs, ours in zip(self.runs[peer], self.runs[self.ours], strict=True):
            if theirs.work != ours.work:
                return "different work: " + ", ".join(
                    f"{ours.work[what]} {what} here, {count} there"
                    for what, count in theirs.work.items()
                    if count != ours.work[what]
                )
        return None

    def to_dict(self) -> dict[str, Any]:
        ratios = {peer: self.ratio(peer) for peer in self.peers}
        reasons = {peer: self.not_compared(peer) for peer in self.peers}
        return {
            "name": self.workload.name,
            "about": self.workload.about,
            "concurrency": self.workload.concurrency,
            "ratio": {peer: round(ratio, 3) for peer, ratio in ratios.items() if ratio is not None},
            "not_compared": {peer: why for peer, why in reasons.items() if why is not None},
            "tokens": {name: dict(runs[0].work) for name, runs in self.runs.items()},
            "runs": [run.to_dict() for runs in self.runs.values() for run in runs],
        }


def compare(
    systems: Sequence[System],
    missing: Mapping[str, str],
    workloads: Sequence[Workload],
    size: Size,
    words: Words,
    repeats: int,
    watch: Watch,
) -> Iterator[Comparison]:
    """Run every workload on all systems in turn (A B A B); yield each finished comparison.

    A system that fails on a workload is left out of that workload's further runs.

    Args:
        systems: the systems, ours first.
        missing: the reasons why other systems cannot run on this machine, by the system's name.
        repeats: number of runs of a workload on each system.
        watch: called with the progress of each run.
    """
    for workload in workloads:
        rows = workload.rows(words, size)
        found = Comparison(workload, systems[0].name, failures=dict(missing))
        for system in systems:
            if lacking := sorted(workload.needs - system.abilities):
                found.failures[system.name] = f"{system.name} has no {' or '.join(lacking)}"
        for system in [*systems] * repeats:
            if system.name in found.failures:
                continue
            try:
                run = run_workload(system, workload, rows, size, words, watch)
            except SglError as error:
                found.failures[system.name] = str(error)
                found.runs.pop(system.name, None)
            else:
                found.runs.setdefault(system.name, []).append(run)
        yield found


def geometric_means(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return the geometric mean of each other system's ratios over the workloads, by name."""
    found: dict[str, list[float]] = {}
    for comparison in comparisons:
        for peer in comparison.peers:
            if (ratio := comparison.ratio(peer)) is not None:
                found.setdefault(peer, []).append(ratio)
    return {peer: round(statistics.geometric_mean(ratios), 3) for peer, ratios in found.items()}
