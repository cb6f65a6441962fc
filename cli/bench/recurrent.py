"""`sgl-mlx bench recurrent`: speed of recurrent layers on the CPU kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.options import json_option, repeats_option

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.micro.paired_runs import Pair


@click.command()
@repeats_option(3)
@click.option("--model", is_flag=True, help="Decode with a whole hybrid too, by the engine.")
@json_option
def recurrent(repeats: int, model: bool, as_json: bool) -> None:
    """Compare recurrent layers on the CPU kernels with mlx-lm's own, on Linux.

    The layers are those of hybrids (gated delta nets, Mamba-2, short convolutions), with random
    weights. Prints a table and ends with one JSON line.
    """
    from sgl_mlx.benchmarks.micro.recurrent import RULE, RecurrentBench, milliseconds
    from sgl_mlx.cpu_kernels.build import load, why_not

    kernels = load()
    if kernels is None:
        raise click.ClickException(str(why_not()))
    pairs = list(RecurrentBench(kernels, repeats).pairs())
    ms = {pair.name: round(milliseconds(pair), 4) for pair in pairs}
    if model:
        pairs += _decode(repeats)
    if not as_json:
        one = ms[f"{RULE}, decode B=1"]
        caption = f"{RULE}: {one:.3f} ms per token and layer"
        print_pairs("recurrent layers on a CPU", pairs, caption, ("ours", "mlx-lm"))
    print_document(pairs, ms_per_token=ms)


def _decode(repeats: int) -> list[Pair]:
    """Measure the engine against mlx-lm's batch generator on a hybrid of four layers."""
    from tempfile import TemporaryDirectory

    from sgl_mlx.benchmarks.micro.engine import EngineBench
    from sgl_mlx.benchmarks.micro.random_hybrid import write
    from sgl_mlx.runtime.engine import Engine

    with TemporaryDirectory() as folder, Engine(str(write(Path(folder)))) as engine:
        pairs = EngineBench(engine, repeats, scale=0.1).decodes([1, 8, 32])
        return [replace(pair, name=f"hybrid of 4 layers, {pair.name}") for pair in pairs]
