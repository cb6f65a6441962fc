"""Output of benchmarks that compare two sides: a table, and one line of JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.benchmarks.micro.paired_runs import Pair


def print_pairs(title: str, pairs: Sequence[Pair], caption: str, sides: tuple[str, str]) -> None:
    """Print a table with a row for each pair.

    Args:
        sides: the column headings of `Pair.ours` and `Pair.theirs`.
    """
    from rich.console import Console

    Console().print(_table(title, pairs, caption, sides))


def print_document(pairs: Sequence[Pair], **facts: Any) -> None:
    """Print one line of JSON: a row for each pair, the `facts`, and the processor and system."""
    rows = [pair.to_dict() for pair in pairs]
    machine = {"machine": platform.machine(), "system": platform.system()}
    click.echo(json.dumps({"rows": rows, **facts, **machine}))


def _table(title: str, pairs: Sequence[Pair], caption: str, sides: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for heading in ("row", *sides, "unit", "ratio", "bar", ""):
        table.add_column(heading, justify="left" if heading in ("row", "unit") else "right")
    for pair in pairs:
        table.add_row(
            pair.name,
            _figure(max(pair.ours)),
            _figure(max(pair.theirs)),
            pair.unit,
            f"{pair.ratio:.2f}x",
            f"{pair.bar}x",
            "holds" if pair.holds else "missed",
        )
    return table


def _figure(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.2f}"
