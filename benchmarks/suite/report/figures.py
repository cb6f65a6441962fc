"""Figures of the suite's reports, computed from its document: medians, hit rates, numbered reasons.

The document is `Comparison.to_dict` of every workload, with the machine and versions around it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.suite.report.formats import readable

OURS = "ours"
"""Our engine's name, where no workload of the document has run on it."""


@dataclass(frozen=True)
class Measured:
    """One system on one workload; figures are medians over its runs, None where no run has one."""

    system: str
    runs: Sequence[Mapping[str, Any]]
    modelled: bool

    def median(self, name: str) -> float | None:
        values = [run[name] for run in self.runs if run.get(name) is not None]
        return statistics.median(values) if values else None

    def count(self, name: str) -> int | None:
        """Return the lower median of a whole number, so that it is the figure of one run."""
        values = [run[name] for run in self.runs if run.get(name) is not None]
        return statistics.median_low(values) if values else None

    @property
    def spread(self) -> float | None:
        """Half of what lies between the shortest and the longest run, as a share of the median."""
        seconds, median = [run["seconds"] for run in self.runs], self.median("seconds")
        return (max(seconds) - min(seconds)) / 2 / median if median and len(seconds) > 1 else None

    @property
    def counts_computed(self) -> bool:
        """True if the system counts computed tokens, as only our engine does."""
        return self.count("computed_tokens") is not None

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that were not computed."""
        computed, total = self.count("computed_tokens"), self.count("total_tokens")
        return None if computed is None or not total else 1 - computed / total

    @property
    def best_hit_rate(self) -> float | None:
        """The hit rate of a cache that holds everything (see `optimum`)."""
        unique, total = self.count("unique_tokens"), self.count("total_tokens")
        return None if unique is None or not total else 1 - unique / total

    @property
    def of_optimum(self) -> float | None:
        """Hit rate over the best there is; None also where nothing is shared."""
        if self.hit_rate is None or not self.best_hit_rate:
            return None
        return self.hit_rate / self.best_hit_rate

    @property
    def rows_per_pass(self) -> float | None:
        """Mean requests in a forward pass that only decodes."""
        rows, passes = self.median("decode_rows"), self.median("decode_passes")
        return None if rows is None or not passes else rows / passes

    @property
    def policy_share(self) -> float | None:
        """Share of the run's seconds that went to tree and scheduler."""
        policy, seconds = self.median("tree_and_scheduler_seconds"), self.median("seconds")
        return None if policy is None or not seconds else policy / seconds


@dataclass(frozen=True)
class Note:
    """Why a peer has no ratio on some workloads. Numbered from 1."""

    number: int
    peer: str
    reason: str
    workloads: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """One workload; `systems` holds those that ran, ours first."""

    name: str
    about: str
    concurrency: int
    systems: Mapping[str, Measured]
    ratios: Mapping[str, float]
    notes: Mapping[str, Note]
    modelled: bool

    @property
    def same_work(self) -> bool:
        """True if all systems that ran made as many calls, of as many tokens."""
        works = [
            [system.count(what) for what in ("calls", "prompt_tokens", "output_tokens")]
            for system in self.systems.values()
        ]
        return all(work == works[0] for work in works)


@dataclass(frozen=True)
class Figures:
    """All figures of a document."""

    ours: str
    peers: tuple[str, ...]
    workloads: tuple[Compared, ...]
    geomean: Mapping[str, float]
    notes: tuple[Note, ...]
    modelled: bool

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Figures:
        """Read a document. A mark `"modelled": true` holds for all that it stands above."""
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
        """True if there are several engines of ours, with parts switched off."""
        counts = ([s.counts_computed for s in w.systems.values()] for w in self.workloads)
        return any(sum(each) > 1 for each in counts)

    def compared_with(self, peer: str) -> int:
        """Count the workloads with a ratio for this peer."""
        return sum(peer in workload.ratios for workload in self.workloads)


def _peers(entry: Mapping[str, Any]) -> list[str]:
    """Return the peers in the order of their runs, then peers without runs."""
    others = {**entry["ratio"], **entry["not_compared"]}
    return [name for name in (*entry["tokens"], *others) if name in others]


def _ours(entry: Mapping[str, Any]) -> str | None:
    """Return the system that has runs, and neither a ratio nor a reason for having none."""
    peers = _peers(entry)
    return next((name for name in entry["tokens"] if name not in peers), None)


def _notes(found: Sequence[Mapping[str, Any]]) -> Iterator[Note]:
    """Yield the reasons in the order of the workloads, each once for a peer."""
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
