"""`sgl-mlx bench`: what the figures in the README are made with."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.engine import model_option

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.benchmarks.pairs import Pair


@click.group()
def bench() -> None:
    """Measure on this machine, as pairs in one run."""


@bench.command()
@model_option
@click.option("--repeats", default=3, show_default=True, help="Pairs measured for each row.")
@click.option("--scale", default=1.0, show_default=True, help="Multiplies the generated tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def engine(model: str | None, repeats: int, scale: float, as_json: bool) -> None:
    """The engine against mlx-lm's generators on the same weights.

    Prints a table and ends with one JSON line.
    """
    from rich.console import Console

    from sgl_mlx.benchmarks.engine import EngineBench
    from sgl_mlx.runtime.engine import Engine

    console = Console(stderr=True)
    with Engine(model_path=model) as running:
        run = EngineBench(running, repeats, scale)
        pairs = []
        for pair in run.pairs():
            pairs.append(pair)
            console.print(f"{pair.name}: {pair.ratio:.2f}x (bar {pair.bar}x)", highlight=False)
        overhead = run.overhead()
    if not as_json:
        Console().print(_table(pairs, overhead))
    document = {
        "rows": [pair.to_dict() for pair in pairs],
        "overhead_share": round(overhead, 5),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    click.echo(json.dumps(document))


def _table(pairs: list[Pair], overhead: float) -> Table:
    from rich.table import Table

    table = Table(title="engine against mlx-lm", caption=f"tree + scheduler: {overhead:.2%}")
    for heading in ("row", "ours", "mlx-lm", "unit", "ratio", "bar", ""):
        table.add_column(heading, justify="left" if heading in ("row", "unit") else "right")
    for pair in pairs:
        table.add_row(
            pair.name,
            f"{max(pair.ours):.0f}",
            f"{max(pair.theirs):.0f}",
            pair.unit,
            f"{pair.ratio:.2f}x",
            f"{pair.bar}x",
            "holds" if pair.holds else "missed",
        )
    return table
