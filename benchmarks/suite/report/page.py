"""Report of the suite as one HTML file, without scripts or links to other files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_mlx.benchmarks.suite.report.facts import facts
from sgl_mlx.benchmarks.suite.report.figures import Figures
from sgl_mlx.benchmarks.suite.report.plots import RatioPlot, token_strips
from sgl_mlx.benchmarks.suite.report.templates import render

WORK = ("calls", "prompt_tokens", "output_tokens")


def write_page(document: Mapping[str, Any], path: Path) -> None:
    """Write the report of a run of the suite to `path`, as HTML.

    Args:
        document: see `report.document`.

    Raises:
        OSError: when the file cannot be written.
    """
    # a file name in the command may hold bytes that are no text
    path.write_text(_render(document), "utf-8", "replace")


def _render(document: Mapping[str, Any]) -> str:
    figures = Figures.of(document)
    return render(
        "page.html.jinja",
        figures=figures,
        plot=RatioPlot.of(figures),
        tokens=list(token_strips(figures)),
        work=WORK,
        facts=facts(document),
        command=document.get("command"),
    )
