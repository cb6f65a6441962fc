"""Ratios of the suite as one SVG file for a README, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_mlx.benchmarks.suite.report.facts import instruction_sets, machine
from sgl_mlx.benchmarks.suite.report.figures import Figures
from sgl_mlx.benchmarks.suite.report.formats import readable
from sgl_mlx.benchmarks.suite.report.plots import RatioPlot
from sgl_mlx.benchmarks.suite.report.templates import render


def write_svg(document: Mapping[str, Any], path: Path) -> None:
    """Write a plot of how many times faster our engine was, per workload and compared system.

    Args:
        document: see `report.document`.

    Raises:
        OSError: when the file cannot be written.
    """
    figures = Figures.of(document)
    notes = [machine(document), *_instruction_lines(document)]
    text = render(
        "plot.svg.jinja",
        figures=figures,
        plot=RatioPlot.of(figures),
        notes=[readable(note) for note in notes if note],
        readable=readable,
    )
    path.write_text(text, "utf-8", "replace")


def _instruction_lines(document: Mapping[str, Any]) -> list[str]:
    return [f"{name} uses {sets}" for name, sets in instruction_sets(document).items()]
