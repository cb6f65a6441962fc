"""`sgl-mlx bench recurrent`: speed of recurrent layers on the CPU kernels."""

from __future__ import annotations

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.options import json_option, repeats_option


@click.command()
@repeats_option(3)
@json_option
def recurrent(repeats: int, as_json: bool) -> None:
    """Compare recurrent layers on the CPU kernels with mlx-lm's own, on Linux.

    Layers of hybrids (gated delta nets, Mamba-2, short convolutions) with random weights. Prints a
    table and ends with one JSON line.
    """
    from sgl_mlx.benchmarks.micro.recurrent import RULE, RecurrentBench, milliseconds
    from sgl_mlx.cpu_kernels.build import load, why_not

    kernels = load()
    if kernels is None:
        raise click.ClickException(str(why_not()))
    pairs = list(RecurrentBench(kernels, repeats).pairs())
    ms = {pair.name: round(milliseconds(pair), 4) for pair in pairs}
    if not as_json:
        one = ms[f"{RULE}, decode B=1"]
        caption = f"{RULE}: {one:.3f} ms a token and layer"
        print_pairs("recurrent layers on a CPU", pairs, caption, ("ours", "mlx-lm"))
    print_document(pairs, ms_per_token=ms)
