"""`sgl-mlx bench loc`: lines of code of one task, as a program and with plain HTTP calls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.loc import Lengths


@click.command()
@json_option
def loc(as_json: bool) -> None:
    """Count the lines of an article analysis, as a program and as plain HTTP calls.

    Blank lines, comments and docstrings are left out. Prints a table and ends with one JSON
    line.
    """
    from sgl_mlx.benchmarks.loc import PAPER, ours

    counted = ours()
    if not as_json:
        _print(counted, PAPER)
    click.echo(json.dumps({"article_analysis": counted.to_dict(), "paper_quoted": PAPER.to_dict()}))


def _print(counted: Lengths, paper: Lengths) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="article analysis, lines of code")
    for heading in ("", "language", "plain HTTP", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, lengths in (("counted here", counted), ("SGLang's paper, quoted", paper)):
        table.add_row(name, str(lengths.language), str(lengths.http), f"{lengths.ratio:.2f}x")
    Console().print(table)
