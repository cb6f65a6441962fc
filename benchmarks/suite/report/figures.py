"""Figures of the suite's reports, computed from its document: medians, hit rates, notes.

The document (`report.document`) holds `Comparison.to_dict` of every workload.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.suite.report.formats import readable

OURS = "ours"
"""Name of our engine in a document in which it has no runs."""


@dataclass(frozen=True)
class Measured:
    """One system on one workload.

    Figures are medians over `runs`; a figure is None if no run has a value for it.
    """

    system: str
    runs: Sequence[Mapping[str, Any]]
    modelled: bool

    def median(self, name: str) -> float | None:
        values = [run[name] for run in self.runs if run.get(name) is not None]
        return statistics.median(values) if values else None

    def count(self, name: str) -> int | None:
        """Return the lower median of an integer figure, which is the value of an actual run."""
        values = [run[name] for run in self.runs if run.get(name) is not None]
        return statistics.median_low(values) if values else None

    @property
    def spread(self) -> float | None:
        """Half the difference of the longest and the shortest run, over the median."""
        seconds, median = [run["seconds"] for run in self.runs], self.median("seconds")
        return (max(seconds) - min(seconds)) / 2 / median if median and len(seconds) > 1 else None

    @property
    def counts_computed(self) -> bool:
        """True if the system counts the prompt tokens it computes; only our engine does."""
        return self.count("computed_tokens") is not None

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that were cached, not computed."""
        computed, total = self.count("computed_tokens"), self.count("total_tokens")
        return None if computed is None or not total else 1 - computed / total

    @property
    def best_hit_rate(self) -> float | None:
        """Highest possible hit rate: that of a cache that holds everything (see `optimum`)."""
        unique, total = self.count("unique_tokens"), self.count("total_tokens")
        return None if unique is None or not total else 1 - unique / total

    @property
    def of_optimum(self) -> float | None:
        """Hit rate over the highest possible one; None also if the prompts share nothing."""
        if self.hit_rate is None or not self.best_hit_rate:
            return None
        return self.hit_rate / self.best_hit_rate

    @property
    def rows_per_pass(self) -> float | None:
        """Mean number of requests in a forward pass that only decodes."""
        rows, passes = self.median("decode_rows"), self.median("decode_passes")
        return None if rows is None or not passes else rows / passes

    @property
    def policy_share(self) -> float | None:
        """Share of the run's time that the radix tree and the scheduler took."""
        policy, seconds = self.median("tree_and_scheduler_seconds"), self.median("seconds")
        return None if policy is None or not seconds else policy / seconds


@dataclass(frozen=True)
class Note:
    """Reason why a compared system has no ratio on some workloads; numbered from 1."""

    number: int
    peer: str
    reason: str
    workloads: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """Results of one workload.

    Attributes:
        systems: systems that ran, by name, ours first.
        ratios: how many times faster ours was than each compared system, by name.
        notes: why a compared system has no ratio, by the system's name.
        modelled: True if any figure was modelled, not measured.
    """

    name: str
    about: str
    concurrency: int
    systems: Mapping[str, Measured]
    ratios: Mapping[str, float]
    notes: Mapping[str, Note]
    modelled: bool

    @property
    def same_work(self) -> bool:
        """True if all systems that ran had the same counts of calls, prompt and output tokens."""
        works = [
            [system.count(what) for what in ("calls", "prompt_tokens", "output_tokens")]
            for system in self.systems.values()
        ]
        return all(work == works[0] for work in works)


@dataclass(frozen=True)
class Figures:
    """All figures of a document.

    Attributes:
        ours: name of our engine.
        peers: names of the systems compared with it.
        geomean: geometric mean of the ratios, by system.
    """

    ours: str
    peers: tuple[str, ...]
    workloads: tuple[Compared, ...]
    geomean: Mapping[str, float]
    notes: tuple[Note, ...]
    modelled: bool

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Figures:
        """Compute the figures of a document.

        `"modelled": true` in the document, a workload or a run marks everything inside it.
        """
        found = document["workloads"]
        ours = next(filter(None, map(_ours, found)), OURS)
        notes = tuple(_notes(found))
        modelled = bool(document.get("modelled"))
        workloads = tuple(_compared(entry, ours, notes, modelled) for entry in found)
        return cls(
            ours,
            tuple(dict.fromkeys(peer for entry in found for peer in _peers(entry))),
            workloads,
            document["geomean"],
            notes,
            modelled or any(workload.modelled for workload in workloads),
        )

    @property
    def ablated(self) -> bool:
        """True if a workload also ran on our engine with parts switched off."""
        counts = ([s.counts_computed for s in w.systems.values()] for w in self.workloads)
        return any(sum(each) > 1 for each in counts)

    def compared_with(self, peer: str) -> int:
        """Count the workloads on which `peer` has a ratio."""
        return sum(peer in workload.ratios for workload in self.workloads)


def _peers(entry: Mapping[str, Any]) -> list[str]:
    """Return the compared systems' names: in order of their runs, then systems without runs."""
    others = {**entry["ratio"], **entry["not_compared"]}
    return [name for name in (*entry["tokens"], *others) if name in others]


def _ours(entry: Mapping[str, Any]) -> str | None:
    """Return the name of our system: it has runs and is not compared; None without runs."""
    peers = _peers(entry)
    return next((name for name in entry["tokens"] if name not in peers), None)


def _notes(found: Sequence[Mapping[str, Any]]) -> Iterator[Note]:
    """Yield a note for each different reason of a system, in the order of the workloads."""
    where: dict[tuple[str, str], list[str]] = {}
    for entry in found:
        for peer, reason in entry["not_compared"].items():
            where.setdefault((peer, readable(reason)), []).append(entry["name"])
    for number, ((peer, reason), names) in enumerate(where.items(), start=1):
        yield Note(number, peer, reason, tuple(names))


def _compared(
    entry: Mapping[str, Any], ours: str, notes: Sequence[Note], modelled: bool
) -> Compared:
    modelled = modelled or bool(entry.get("modelled"))
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for run in entry["runs"]:
        runs.setdefault(run["system"], []).append(run)
    systems = {
        name: Measured(name, of, modelled or any(run.get("modelled") for run in of))
        for name, of in sorted(runs.items(), key=lambda item: item[0] != ours)
    }
    return Compared(
        entry["name"],
        entry["about"],
        entry["concurrency"],
        systems,
        entry["ratio"],
        {note.peer: note for note in notes if entry["name"] in note.workloads},
        modelled or any(system.modelled for system in systems.values()),
    )
