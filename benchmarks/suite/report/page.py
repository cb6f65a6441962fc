"""The suite's report as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from sgl_mlx.benchmarks.suite.report import formats
from sgl_mlx.benchmarks.suite.report.figures import Figures
from sgl_mlx.benchmarks.suite.report.plots import RatioPlot, token_strips

WORK = ("calls", "prompt_tokens", "output_tokens")


def write_page(document: Mapping[str, Any], path: Path) -> None:
    """Write the report of a suite.

    Args:
        document: what the suite ends with, see `Comparison.to_dict`.

    Raises:
        OSError: the file cannot be written.
    """
    # a file name in the command may hold bytes that are no text
    path.write_text(_render(document), "utf-8", "replace")


def _render(document: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = Figures.of(document)
    return environment.get_template("page.html.jinja").render(
        figures=figures,
        plot=RatioPlot.of(figures),
        tokens=list(token_strips(figures)),
        work=WORK,
        facts=_facts(document),
        command=document.get("command"),
        f=formats,
    )


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    """What the figures hold for, as far as the document says."""
    machine: Mapping[str, Any] = document.get("machine") or {}
    system = " ".join(str(machine[key]) for key in ("system", "machine") if machine.get(key))
    memory = machine.get("memory_gb")
    found = {
        "machine": system,
        "processor": machine.get("processor"),
        "cores": machine.get("cores"),
        "memory": f"{memory:g} GB" if isinstance(memory, int | float) else memory,
        **(document.get("versions") or {}),
        "commit": document.get("commit"),
        "scale": document.get("scale"),
        "repeats": document.get("repeats"),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}
