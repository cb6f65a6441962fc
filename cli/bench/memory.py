"""`sgl-mlx bench memory`: modelled memory use of an 8B model on Macs of several sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.engine import kv_bits_option
from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.modelled.mac_memory import Row


@click.command()
@kv_bits_option
@json_option
def memory(kv_bits: int | None, as_json: bool) -> None:
    """Show how much memory Llama 3.1 8B in 4 bits takes on Macs of 8 to 512 GB.

    Nothing runs: the engine's own rules are applied to modelled machines, with default options
    apart from --kv-bits. Prints a table and ends with one JSON line.
    """
    from sgl_mlx.benchmarks.modelled.mac_memory import LLAMA_8B, table

    rows = list(table(kv_bits=kv_bits))
    if not as_json:
        _print(LLAMA_8B.name, rows)
    found = [{**asdict(row), "left": row.left} for row in rows]
    click.echo(json.dumps({"model": LLAMA_8B.name, "modelled": True, "macs": found}))


def _print(model: str, rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{model}, modelled; GiB")
    for heading in ("Mac", "usable", "KV pool, tokens", "KV pool", "with weights", "left"):
        shown.add_column(heading, justify="right")
    for row in rows:
        sizes = [f"{size / 2**30:.1f}" for size in (row.pool, row.total, row.left)]
        cells = [f"{row.slots:,}", *sizes] if row.refusal is None else ["refused", "", "", ""]
        shown.add_row(f"{row.memory / 2**30:.0f}", f"{row.usable / 2**30:.1f}", *cells)
    Console().print(shown)
