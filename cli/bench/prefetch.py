"""`sgl-mlx bench prefetch`: time to first token after eviction, with and without disk cache."""

from __future__ import annotations

from dataclasses import asdict

import click

from sgl_mlx.cli.bench.pair_report import print_document, print_pairs
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option, repeats_option


@click.command()
@engine_options
@click.option("--prefix", default=4000, show_default=True, help="Tokens of the evicted prefix.")
@repeats_option(2)
@json_option
def prefetch(options: EngineOptions, prefix: int, repeats: int, as_json: bool) -> None:
    """Compare the time to the first token after an eviction, with and without a disk cache.

    Prints a table and ends with one JSON line.
    """
    from tempfile import TemporaryDirectory

    from sgl_mlx.benchmarks.micro.prefetch import PrefetchBench
    from sgl_mlx.benchmarks.micro.prefetch_program import compare
    from sgl_mlx.runtime.engine import Engine

    size = {**asdict(options.without_drafts()), "max_total_tokens": PrefetchBench.slots(prefix)}
    with (
        TemporaryDirectory() as folder,
        Engine(**{**size, "disk_cache_dir": options.disk_cache_dir or folder}) as ours,
        Engine(**{**size, "disk_cache_dir": None}) as theirs,
    ):
        requests = PrefetchBench(ours, theirs, prefix, repeats=repeats)
        pairs = [*requests.pairs(), compare(ours, theirs, requests.text, repeats)]
        stats = ours.get_server_info()["stats"]
    if not as_json:
        caption = f"{stats['restored_tokens']} tokens restored"
        print_pairs("first token after an eviction", pairs, caption, ("disk cache", "without"))
    print_document(pairs, stats=stats)
