"""`sgl-mlx bench engine`: speed of the engine compared with mlx-lm's generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option, repeats_option, scale_option


@click.command()
@engine_options
@repeats_option(3)
@scale_option(1.0, "Multiply the number of generated tokens.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.IntRange(2),
    help="Measure only the decoding of one row after this many tokens; repeatable.",
)
@click.option(
    "--layers",
    type=click.IntRange(1),
    help="With --context, use only this many of the model's first layers.",
)
@json_option
def engine(
    options: EngineOptions,
    repeats: int,
    scale: float,
    contexts: tuple[int, ...],
    layers: int | None,
    as_json: bool,
) -> None:
    """Compare the engine with mlx-lm's generators on the same weights.

    Prints a table and ends with one JSON line.
    """
    if contexts:
        _long(options.model_path, contexts, layers, repeats, max(int(64 * scale), 4), as_json)
        return
    from rich.console import Console

    from sgl_mlx.benchmarks.micro.engine import EngineBench
    from sgl_mlx.runtime.engine import Engine

    console = Console(stderr=True)
    with Engine(**asdict(options.without_drafts())) as running:
        run = EngineBench(running, repeats, scale)
        pairs = []
        for pair in run.pairs():
            pairs.append(pair)
            console.print(f"{pair.name}: {pair.ratio:.2f}x (bar {pair.bar}x)", highlight=False)
        overhead = run.overhead()
    if not as_json:
        caption = f"tree + scheduler: {overhead:.2%}"
        print_pairs("engine against mlx-lm", pairs, caption, ("ours", "mlx-lm"))
    print_document(pairs, overhead_share=round(overhead, 5))


def _long(
    model: str | None,
    contexts: Sequence[int],
    layers: int | None,
    repeats: int,
    new_tokens: int,
    as_json: bool,
) -> None:
    from sgl_mlx.benchmarks.micro.long_context import measure, opening_milliseconds

    pairs = list(measure(model, contexts, layers, repeats, new_tokens))
    opening = opening_milliseconds()
    if not as_json:
        caption = f"opening an epoch of 32,768 tokens and 32 layers in Python: {opening:.1f} ms"
        print_pairs("one row against mlx-lm", pairs, caption, ("ours", "mlx-lm"))
    print_document(pairs, epoch_opening_ms=round(opening, 2), layers=layers)
