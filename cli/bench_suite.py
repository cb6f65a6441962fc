"""`sgl-mlx bench suite`: the paper's workloads on our engine and on its peers."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.engine import EngineOptions, engine_options
from sgl_mlx.errors import BenchmarkError

if TYPE_CHECKING:
    from sgl_mlx.benchmarks.peers.system import System
    from sgl_mlx.benchmarks.peers.weights import Weights
    from sgl_mlx.benchmarks.suite.drive import Watch
    from sgl_mlx.benchmarks.suite.workloads.workload import Workload

PEERS = ("llama.cpp", "mlx-lm")


@click.command("suite")
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
@engine_options
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Repeatable.")
@click.option("--llama-server", metavar="PATH", help="llama.cpp's server, if it is not found.")
@click.option("--ablation", "ablations", multiple=True, metavar="NAME", help="Repeatable.")
@click.option("--scale", default=0.1, show_default=True, help="1 is the paper's size.")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False),
    help="Rows for one workload, a JSON object a line.",
)
@click.option("--repeats", default=1, show_default=True, help="Rounds, ours and theirs in turn.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds a peer may be silent.")
@click.option("--tower", default="clip-b-224", show_default=True, help="Shape of its random eyes.")
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a page with plots.")
@click.option("--list", "list_only", is_flag=True, help="List workloads and ablations, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print only the JSON document.")
def suite(
    names: tuple[str, ...],
    options: EngineOptions,
    peers: tuple[str, ...],
    llama_server: str | None,
    ablations: tuple[str, ...],
    scale: float,
    data: str | None,
    repeats: int,
    timeout: float,
    tower: str,
    html: str | None,
    list_only: bool,
    as_json: bool,
) -> None:
    """The paper's workloads, on our engine and on its peers.

    All systems run the same weights, get the same prompts and write the same number of tokens;
    where they do not, their times are not compared. A peer that is missing or fails is reported,
    and the rest goes on. Prints a table and ends with one JSON line.

    With --data, name one workload: each line of the file has arguments of its program, all or some,
    and what it leaves out is generated as without. `--list` names the arguments.
    """
    from sgl_mlx.benchmarks.suite.ablations import ABLATIONS, ablated
    from sgl_mlx.benchmarks.suite.workloads import catalogue

    if list_only:
        arguments = {n: w.program.arg_names for n, w in catalogue.WORKLOADS.items()}
        _list(catalogue.WORKLOADS, ABLATIONS, arguments)
        return
    if scale <= 0 or repeats < 1:
        raise click.UsageError("--scale must be above 0 and --repeats at least 1")
    workloads = _workloads(names, data)
    from rich.console import Console

    from sgl_mlx.benchmarks.peers.ours import Ours
    from sgl_mlx.benchmarks.peers.weights import Weights
    from sgl_mlx.benchmarks.suite.compare import compare
    from sgl_mlx.benchmarks.suite.report.document import describe
    from sgl_mlx.benchmarks.suite.report.table import suite_table
    from sgl_mlx.benchmarks.suite.workloads.words import Words
    from sgl_mlx.benchmarks.suite.workloads.workload import Size

    with ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        weights = Weights(options.model_path, folder)
        mmproj = options.mmproj
        if mmproj is None and any("images" in workload.needs for workload in workloads):
            mmproj = str(weights.random_eyes(tower))
        chosen = {**asdict(options), "mmproj": mmproj}
        systems: list[System] = [Ours(chosen), *(ablated(name, chosen) for name in ablations)]
        missing: dict[str, str] = {}
        for peer in peers:
            try:
                systems.append(_peer(peer, weights, mmproj, llama_server, timeout))
            except BenchmarkError as error:
                missing[peer] = str(error)
        size, words = Size(scale, folder), Words(weights.tokenizer)
        found = []
        with _watched() as watch:
            for comparison in compare(systems, missing, workloads, size, words, repeats, watch):
                found.append(comparison)
                _say(comparison.to_dict())
        document = describe(found, scale, repeats, shlex.join(["sgl-mlx", *sys.argv[1:]]), systems)
    if html:
        from sgl_mlx.benchmarks.suite.report.page import write_page

        write_page(document, Path(html))
        click.echo(f"wrote {html}", err=True)
    if not as_json:
        Console().print(suite_table(document))
    click.echo(json.dumps(document))


def _workloads(names: tuple[str, ...], data: str | None) -> list[Workload]:
    from sgl_mlx.benchmarks.suite.workloads.catalogue import find
    from sgl_mlx.benchmarks.suite.workloads.data_set import over_data

    workloads = find(names)
    if data is None:
        return workloads
    if len(names) != 1:
        raise click.UsageError("--data is for one workload: name it")
    return [over_data(workload, Path(data)) for workload in workloads]


def _list(workloads: Any, ablations: Any, arguments: dict[str, Any]) -> None:
    for title, entries in (("workloads", workloads), ("ablations", ablations)):
        click.echo(f"{title}:")
        for name, entry in entries.items():
            click.echo(f"  {name:<24}{entry.about}")
            if name in arguments:
                click.echo(f"  {'':<24}--data takes {', '.join(arguments[name])}")


def _peer(
    name: str, weights: Weights, mmproj: str | None, server: str | None, timeout: float
) -> System:
    """Raises `PeerError` where it cannot run here."""
    from sgl_mlx.benchmarks.peers.llama_cpp import LlamaCpp
    from sgl_mlx.benchmarks.peers.mlx_lm import MlxLm

    if name == "mlx-lm":
        return MlxLm(str(weights.mlx_folder()), timeout)
    return LlamaCpp(str(weights.path), server, mmproj, timeout=timeout)


def _say(row: dict[str, Any]) -> None:
    ratios = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row["ratio"].items())
    reasons = "; ".join(f"{peer}: {why}" for peer, why in row["not_compared"].items())
    click.echo(f"{row['name']}: {'; '.join(filter(None, (ratios, reasons)))}", err=True)


@contextmanager
def _watched() -> Iterator[Watch]:
    """A bar on standard error for the run under way; nothing when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def watch(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        yield watch


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that its servers are ended too."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
