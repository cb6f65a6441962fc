"""`sgl-mlx bench speculation`: speed of the engine with drafted tokens and without them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option, repeats_option


@click.command()
@engine_options
@repeats_option(3)
@click.option(
    "--tokens",
    type=click.IntRange(8),
    default=120,
    show_default=True,
    help="Tokens of each answer.",
)
@click.option(
    "--draft-layers",
    type=click.IntRange(1),
    help="Also draft with this many of the model's first layers, untrained, as a draft model.",
)
@json_option
def speculation(
    options: EngineOptions, repeats: int, tokens: int, draft_layers: int | None, as_json: bool
) -> None:
    """Compare output with drafted tokens and without, on texts that repeat and texts that do not.

    First the time of a step is measured for several numbers of tokens, and saved for later engines
    on this machine. Prints two tables and ends with one JSON line.
    """
    if draft_layers is not None and options.draft is not None:
        raise click.UsageError("--draft and --draft-layers are two draft models; give one")
    with TemporaryDirectory() as folder:
        if draft_layers is not None:
            from sgl_mlx.benchmarks.micro.truncated import write_truncated

            write_truncated(options.model_path, draft_layers, Path(folder))
            options = replace(options, draft=folder)
        _measure(options, repeats, tokens, as_json)


def _measure(options: EngineOptions, repeats: int, tokens: int, as_json: bool) -> None:
    from rich.console import Console

    from sgl_mlx.benchmarks.micro.speculation import SpeculationBench
    from sgl_mlx.models.loader import load
    from sgl_mlx.runtime.engine import Engine
    from sgl_mlx.runtime.speculation.measure import forget_costs

    console = Console(stderr=True)
    forget_costs()
    model = load(options.model_path, mmproj=options.mmproj)
    chosen = {**asdict(options), "model_path": None, "mmproj": None}
    with (
        Engine(model=model, **{**chosen, "speculate": options.speculate or "auto"}) as ours,
        Engine(model=model, **{**chosen, "speculate": "off", "draft": None}) as theirs,
    ):
        run = SpeculationBench(ours, theirs, repeats, tokens)
        costs = ours.get_server_info()["step_seconds"]
        pairs = []
        for pair in run.pairs():
            pairs.append(pair)
            console.print(f"{pair.name}: {pair.ratio:.2f}x (bar {pair.bar}x)", highlight=False)
    counts = {name: found._asdict() for name, found in run.accepted.items()}
    if not as_json:
        _print_costs(costs)
        differing = sum(run.differing.values())
        caption = f"{differing} answers differ" if differing else "all answers are the same"
        print_pairs("with drafts against without", pairs, caption, ("drafts", "without"))
    print_document(pairs, step_seconds=costs, counts=counts)


def _print_costs(costs: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    if costs is None:
        return
    table = Table(title="cost of a step, in ms")
    decode = dict(costs["decode"])
    for heading in ("tokens", "verified in one step", "decoded, one of each row"):
        table.add_column(heading, justify="right")
    for size, seconds in costs["extend"]:
        one_each = f"{1000 * decode[size]:.2f}" if size in decode else ""
        table.add_row(str(size), f"{1000 * seconds:.2f}", one_each)
    Console().print(table)
