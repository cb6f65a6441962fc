"""Report of the suite in a terminal: a table of workloads, with means and notes below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sgl_mlx.benchmarks.suite.report.facts import instruction_sets
from sgl_mlx.benchmarks.suite.report.figures import Compared, Figures, Note
from sgl_mlx.benchmarks.suite.report.formats import percent, readable, seconds, short, times

if TYPE_CHECKING:
    from rich.table import Table

WORK = {"calls": "calls", "prompt_tokens": "prompt", "output_tokens": "output"}
"""Counts that must be equal on all systems, with the headings of their columns."""


def suite_table(document: Mapping[str, Any]) -> Table:
    """Make a table with a row for each workload from a document (see `report.document`).

    A compared system's column has its seconds, and their ratio to ours. A count of work is written
    once if it is the same on all systems, else for each system exactly.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table  # heavy: other parts of the benchmarks do without
    from rich.text import Text  # names and reasons are text, whatever markup they look like

    figures = Figures.of(document)
    caption = Text(_caption(figures, instruction_sets(document)))
    table = Table(title="suite", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    table.padding = (0, 0)  # the box's lines are spaces already: two peers need most of 80 columns
    table.add_column("workload", overflow="fold")
    for heading in ("at\nonce", figures.ours, *figures.peers, "hit\nrate", "of\noptimum"):
        table.add_column(Text(heading), justify="right", overflow="fold")
    for heading in WORK.values():
        table.add_column(heading, justify="right", overflow="fold")
    for workload in figures.workloads:
        table.add_row(*map(Text, _cells(figures, workload)))
    return table


def _cells(figures: Figures, workload: Compared) -> list[str]:
    ours = workload.systems.get(figures.ours)
    return [
        workload.name + (" (modelled)" if workload.modelled else ""),
        str(workload.concurrency),
        seconds(ours.median("seconds") if ours else None),
        *(_peer(workload, peer) for peer in figures.peers),
        percent(ours.hit_rate if ours else None),
        percent(ours.of_optimum if ours else None),
        *(_work(workload, what) for what in WORK),
    ]


def _peer(workload: Compared, peer: str) -> str:
    """Return seconds and ratio, such as `42.4s 2.91x`; without a ratio, a note, as `- (1)`."""
    parts = []
    if measured := workload.systems.get(peer):
        parts.append(f"{seconds(measured.median('seconds'))}s")
    if note := workload.notes.get(peer):
        parts.append(f"- ({note.number})")
    elif peer in workload.ratios:
        parts.append(times(workload.ratios[peer]))
    return " ".join(parts)


def _work(workload: Compared, what: str) -> str:
    counts = {name: system.count(what) for name, system in workload.systems.items()}
    if len(set(counts.values())) > 1:
        return "\n".join(f"{name} {count}" for name, count in counts.items())
    return short(next(iter(counts.values()), None))


def _caption(figures: Figures, instructions: Mapping[str, str]) -> str:
    of = len(figures.workloads)
    means = [
        f"{times(mean)} {peer} (from {figures.compared_with(peer)} of {of})"
        for peer, mean in figures.geomean.items()
    ]
    mark = " (modelled)" if figures.modelled else ""
    lines = [f"geometric mean{mark}: {', '.join(means)}"] if means else []
    compiled = [f"{name} uses {readable(sets)}" for name, sets in instructions.items()]
    return "\n".join([*lines, *compiled, *map(_footnote, figures.notes)])


def _footnote(note: Note) -> str:
    return f"({note.number}) {note.peer} on {', '.join(note.workloads)}: {note.reason}"
