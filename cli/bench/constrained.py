"""`sgl-mlx bench constrained`: speed of constrained output compared with free output."""

from __future__ import annotations

from dataclasses import asdict

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option, repeats_option


@click.command()
@engine_options
@repeats_option(3)
@json_option
def constrained(options: EngineOptions, repeats: int, as_json: bool) -> None:
    """Compare a JSON record constrained by a regex with free text of the same length.

    The record has twelve fields. Prints a table and ends with one JSON line.
    """
    from sgl_mlx.benchmarks.micro.constrained import ConstrainedBench
    from sgl_mlx.runtime.engine import Engine

    with Engine(**asdict(options.without_drafts())) as running:
        run = ConstrainedBench(running, repeats)
        pairs = [run.pair(1), run.pair(8)]
        shares = run.shares()
    if not as_json:
        caption = f"forced tokens: {shares.forced:.0%}; masks: {shares.masks:.2%} of model time"
        print_pairs("constrained against free", pairs, caption, ("grammar", "free"))
    print_document(pairs, forced_share=shares.forced, mask_share=shares.masks)
