"""`sgl-mlx bench compiler`: speed of compiled and interpreted programs, without a model."""

from __future__ import annotations

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.options import json_option, repeats_option


@click.command()
@click.option("--programs", default=1000, show_default=True, help="Programs in a batch.")
@repeats_option(9)
@json_option
def compiler(programs: int, repeats: int, as_json: bool) -> None:
    """Compare compiled with interpreted programs per second, without a model.

    Prints a table and ends with one JSON line.
    """
    from sgl_mlx.benchmarks.micro.compiler import overhead

    pairs = overhead(programs, repeats)
    if not as_json:
        sides = ("compiled", "interpreted")
        print_pairs("programs without a model", pairs, "one thread", sides)
    print_document(pairs)
