"""`sgl-mlx bench overhead`: cost of the HTTP server against the engine in process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import click

from sgl_mlx.cli.bench.watching import ended_by_signals, watched
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine
from sgl_mlx.cli.options import json_option, repeats_option
from sgl_mlx.cli.serve import require_packages

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.runtime.engine import Engine

_COUNTS = (1, 32)
_COLUMNS = {
    "at_once": "at",
    "tokens_per_second": "tokens/s\nby HTTP",
    "speed_ratio": "speed\nratio",
    "cpu_ratio": "CPU\nratio",
    "ttft_ms_more": "TTFT\nmore, ms",
    "loop_share": "share of\nthe loop",
    "loop_us_per_token": "loop, us\nper token",
}
"""Headings of the figures of a row."""


@click.command()
@engine_options
@click.option(
    "--at",
    "counts",
    multiple=True,
    type=click.IntRange(1),
    help="Requests at once; repeatable, 1 and 32 by default.",
)
@click.option(
    "--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of each answer."
)
@click.option(
    "--long-prompt",
    type=click.IntRange(0),
    default=100_000,
    show_default=True,
    help="Tokens of the prompts that arrive beside streams; 0 leaves this out.",
)
@repeats_option(3)
@json_option
def overhead(
    options: EngineOptions,
    counts: tuple[int, ...],
    tokens: int,
    long_prompt: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Compare our server with the engine that it serves.

    The same chats are streamed over HTTP and generated in process, on one engine in turn. The table
    shows medians over the pairs: speed and processor time over HTTP, each divided by that in
    process; the additional time to the first token; and the event loop's share of the processor
    time. Then two long prompts arrive beside streams, and the longest work of the event loop is
    measured. Ends with one JSON line.
    """
    require_packages()
    from sgl_mlx.benchmarks.serve.overhead import Overhead
    from sgl_mlx.server import app

    with (
        ended_by_signals(),
        open_engine(options.without_drafts()) as opened,
        watched() as watch,
    ):
        engine = cast("Engine", opened)
        measured = Overhead(engine, app(engine), tokens, repeats, watch)
        rows = [found.to_dict() for found in measured.compare(counts or _COUNTS)]
        document: dict[str, Any] = {"rows": rows}
        if long_prompt:
            busy = measured.longest_stretch(max(counts or _COUNTS), long_prompt)
            document["longest_loop_ms"] = {
                "cpu": round(1000 * busy.cpu, 1),
                "wall": round(1000 * busy.wall, 1),
            }
    if not as_json:
        from rich.console import Console

        Console().print(_table(document))
    click.echo(json.dumps(document))


def _table(document: dict[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    longest = document.get("longest_loop_ms")
    caption = longest and (
        f"longest work of the event loop: {longest['cpu']} ms of its thread, "
        f"{longest['wall']} ms with its waits"
    )
    table = Table(title="over HTTP, against in process", caption=caption, box=SIMPLE_HEAD)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in document["rows"]:
        table.add_row(*(str(row[name]) for name in _COLUMNS))
    return table
