"""`sgl-mlx bench soak`: mixed traffic on our server for minutes or hours, and what went wrong."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.bench.watching import ended_by_signals, watched
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.benchmarks.soak.samples import Sample

_KEYS = ("one", "two")
"""API keys of the server, so that its clients use two parts of the prefix cache."""
_MIB = 2**20


@click.command()
@engine_options
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Send new requests for this long.",
)
@click.option(
    "--clients", type=click.IntRange(1), default=8, show_default=True, help="Requests at once."
)
@click.option(
    "--slots",
    type=click.IntRange(64),
    default=16384,
    show_default=True,
    help="Slots (tokens) of the server's KV pool.",
)
@click.option(
    "--longest",
    type=click.IntRange(1),
    default=4000,
    show_default=True,
    help="Words of the longest prompts.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds between samples of memory.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the requests.")
@json_option
@click.pass_context
def soak(
    context: click.Context,
    options: EngineOptions,
    minutes: float,
    clients: int,
    slots: int,
    longest: int,
    interval: float,
    seed: int,
    as_json: bool,
) -> None:
    """Send mixed requests to our server for a long time, and count what goes wrong.

    Clients send chats, long prompts, shared prefixes, grammars, pictures if the model takes them,
    bad requests, aborts and broken-off streams, and check each answer. The report has latencies
    by kind of request, memory over time, slots that no request gave back, and errors by kind.
    Exits with code 1 if there was an error or a leaked slot.
    """
    from sgl_mlx.benchmarks.peers.our_server import serve_command
    from sgl_mlx.benchmarks.peers.server import running
    from sgl_mlx.benchmarks.soak.run import Plan, soak

    plan = Plan(minutes * 60, clients, slots, longest, interval, _KEYS, seed)
    given = {**asdict(options), "max_total_tokens": slots}

    def command(port: int) -> list[str]:
        keys = [word for key in _KEYS for word in ("--api-key", key)]
        return [*serve_command(given, port), *keys]

    with ended_by_signals(), watched() as watch:

        def told(sample: Sample) -> None:
            name = f"{sample.rss / _MIB:.0f} MiB"
            watch(name, min(int(sample.seconds), int(plan.seconds)), int(plan.seconds))

        with running("our server", command, "/health") as address:
            report = asyncio.run(soak(address, plan, told))
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)
    left = report["left"]
    if report["errors"] or left["leaked_slots"] or left["slots_after_flush"]:
        context.exit(1)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(report["kinds"]))
    memory, left = report["memory"], report["left"]
    if memory:
        console.print(
            f"memory: {memory['settled_rss'] / _MIB:.0f} MiB after "
            f"{memory['settled_seconds']:.0f} s, {memory['end_rss'] / _MIB:.0f} MiB at the end "
            f"({memory['growth']:+.1%})",
            highlight=False,
        )
    console.print(f"left at the end: {left}", highlight=False)
    for error, count in report["errors_by_kind"].items():
        console.print(f"{count} x {error}", highlight=False, markup=False)


def _table(kinds: dict[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="requests, times in seconds", box=SIMPLE_HEAD)
    table.add_column("kind")
    for heading in ("requests", "errors", "p50", "p99", "first p50", "first p99"):
        table.add_column(heading, justify="right")
    for kind, row in kinds.items():
        times = [row[name] for name in ("p50", "p99", "first_p50", "first_p99")]
        cells = ["" if seconds is None else f"{seconds:.2f}" for seconds in times]
        table.add_row(kind, str(row["requests"]), str(row["errors"]), *cells)
    return table
