"""`sgl-mlx bench serve`: our server compared with others, over HTTP, by the same conversations."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.bench.peer_options import llama_server_option, peers_option
from sgl_mlx.cli.bench.watching import ended_by_signals, watched
from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.cli.options import json_option, repeats_option, scale_option
from sgl_mlx.errors import BenchmarkError

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.benchmarks.peers.weights import Weights
    from sgl_mlx.benchmarks.serve.compare import Comparison
    from sgl_mlx.benchmarks.serve.servers import ChatServer

_COUNTS = (1, 8, 16, 32)


@click.command()
@engine_options
@peers_option("server on the same weights")
@llama_server_option
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Measure the server at this address, which speaks OpenAI's protocol; repeatable.",
)
@click.option("--served-model", metavar="NAME", help="Model name for requests to --url.")
@click.option("--api-key", metavar="KEY", help="API key for requests to --url.")
@click.option("--no-ours", is_flag=True, help="Measure only the servers of --url and --peer.")
@click.option(
    "--trace",
    "traces",
    multiple=True,
    type=click.Choice(("chat", "agent")),
    help="Conversations to hold; repeatable, all by default.",
)
@click.option(
    "--at",
    "counts",
    multiple=True,
    type=click.IntRange(1),
    help="Conversations at once; repeatable, 1, 8, 16 and 32 by default.",
)
@scale_option(1.0, "Size of the conversations; at 1 an agent's prompt has 4,000 tokens.")
@repeats_option(1)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    help="Give up on a server that is silent for this many seconds.",
)
@json_option
def serve(
    options: EngineOptions,
    peers: tuple[str, ...],
    llama_server: str | None,
    urls: tuple[str, ...],
    served_model: str | None,
    api_key: str | None,
    no_ours: bool,
    traces: tuple[str, ...],
    counts: tuple[int, ...],
    scale: float,
    repeats: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Measure servers by conversations over HTTP.

    There are chats of four turns, and agents that share 4,000 tokens of instructions and tools.
    Several conversations are held at once (see --at), on our server and on its peers in turn. The
    table shows output tokens per second, seconds to the first token and between tokens, and the
    share of prompt tokens found in the cache. The servers started here all write the same texts; a
    server at --url writes texts of its own. Ends with one JSON line.
    """
    if no_ours and not (urls or peers):
        raise click.UsageError("--no-ours leaves nothing to measure; add --url or --peer")
    from sgl_mlx.benchmarks.peers.weights import Weights
    from sgl_mlx.benchmarks.serve.compare import Bench
    from sgl_mlx.benchmarks.serve.servers import RunningServer, our_server
    from sgl_mlx.benchmarks.serve.trace import TRACES
    from sgl_mlx.benchmarks.suite.workloads.words import Words
    from sgl_mlx.benchmarks.suite.workloads.workload import Size

    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        weights = Weights(options.model_path, Path(stack.enter_context(TemporaryDirectory())))
        servers: list[ChatServer] = (
            [] if no_ours else [our_server(asdict(options.without_drafts()))]
        )
        found, missing = _peers(peers, weights, llama_server)
        servers += found
        servers += [RunningServer(url, url, served_model, api_key) for url in urls]
        bench = Bench(
            servers,
            missing,
            Words(weights.tokenizer),
            Size(scale),
            repeats,
            timeout,
            stack.enter_context(watched()),
        )
        chosen = [TRACES[name] for name in traces or TRACES]
        compared = list(_said(bench.compare(chosen, counts or _COUNTS)))
    rows = [comparison.to_dict() for comparison in compared]
    if not as_json:
        from rich.console import Console

        Console().print(_table(rows))
    machine = {"machine": platform.machine(), "system": platform.system()}
    click.echo(json.dumps({"rows": rows, "scale": scale, "repeats": repeats, **machine}))


def _peers(
    names: Sequence[str], weights: Weights, program: str | None
) -> tuple[list[ChatServer], dict[str, str]]:
    """Return the peers' servers; and by name, why each missing peer cannot run here."""
    from sgl_mlx.benchmarks.serve.servers import llama_cpp, mlx_lm

    servers: list[ChatServer] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            servers.append(
                mlx_lm(str(weights.mlx_folder()))
                if name == "mlx-lm"
                else llama_cpp(str(weights.path), program)
            )
        except BenchmarkError as error:
            missing[name] = str(error)
    return servers, missing


def _said(comparisons: Iterable[Comparison]) -> Iterable[Comparison]:
    """Print each comparison's ratios on standard error as soon as it is made; yield it."""
    for comparison in comparisons:
        row = comparison.to_dict()
        ratios = [f"{ratio:.2f}x {peer}" for peer, ratio in row["ratio"].items()]
        without = {**row["failures"], **row["not_compared"]}
        reasons = [f"{server}: {why}" for server, why in without.items()]
        said = "; ".join([*ratios, *reasons]) or "done"
        click.echo(f"{row['trace']} at {row['at_once']}: {said}", err=True)
        yield comparison


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title="conversations over HTTP, times in seconds", box=SIMPLE_HEAD)
    table.padding = (0, 0)
    headings = ("tokens/s", *("TTFT\np50", "p99", "between\np50", "p99"), "hit\nrate", "ours\nis")
    for heading in ("trace", "at", "server"):
        table.add_column(heading, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        for run in row["runs"]:
            ratio = row["ratio"].get(run["server"])
            cells = [
                row["trace"],
                str(row["at_once"]),
                run["server"],
                f"{run['tokens_per_second']:.1f}",
                *(_seconds(run[name]) for name in _TIMES),
                f"{run['hit_rate']:.1%}",
                "" if ratio is None else f"{ratio:.2f}x",
            ]
            table.add_row(*map(Text, cells))
    return table


_TIMES = ("ttft_p50", "ttft_p99", "inter_token_p50", "inter_token_p99")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
