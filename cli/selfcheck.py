"""`sgl-mlx selfcheck`: proves on this machine that a model answers alike however it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import fetch_model, kv_bits_option, mmproj_option, model_option
from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from rich.table import Table

    from sgl_mlx.selfcheck.check import Report

_PROGRAMS = 200


@click.command()
@model_option
@mmproj_option
@kv_bits_option
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="Check for this many minutes."
)
@click.option(
    "--programs",
    type=click.IntRange(1),
    help=f"Check this many programs; {_PROGRAMS} if --minutes is not given either.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the programs.")
@json_option
@click.pass_context
def selfcheck(
    ctx: click.Context,
    model: str | None,
    mmproj: str | None,
    kv_bits: int | None,
    minutes: float | None,
    programs: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Check that answers do not depend on how they are computed.

    Random programs are run alone, without cache, and then batched, cached, forked, streamed, with
    speculation, restored from disk and in a new process. Tokens and logprobs must be the same.
    Answers that differ from a near-tie on, which rounding decides, are counted apart.

    Ends with code 1 at a difference, and prints the smallest program that shows it. Ctrl-C ends the
    check and prints the table so far.
    """
    from sgl_mlx.blas import load_fast_blas

    fetch_model(model)
    load_fast_blas()  # before mlx is imported, or it would have no effect
    from sgl_mlx.selfcheck.check import SelfCheck
    from sgl_mlx.selfcheck.open import open_engines

    if minutes is None and programs is None:
        programs = _PROGRAMS
    given = {"mmproj": mmproj, "kv_bits": kv_bits}
    options = {name: value for name, value in given.items() if value is not None}
    with open_engines(model, options) as engines, _progress(programs, minutes) as show:
        check = SelfCheck(engines, seed=seed)
        try:
            report = check.run(programs, minutes and 60 * minutes, show)
            interrupted = False
        except KeyboardInterrupt:
            report, interrupted = check.report, True
    _print(report, as_json)
    if interrupted:
        raise KeyboardInterrupt
    ctx.exit(report.finding is not None)


def _print(report: Report, as_json: bool) -> None:
    finding = report.finding
    if as_json:
        output.print_document(_document(report))
        return
    from rich.console import Console

    Console().print(_table(report))
    if finding is None:
        click.echo(f"{report.programs} programs, seed {report.seed}: no difference")
        return
    click.echo(f"\na difference in {finding.way.name!r}:\n{finding.difference}\n")
    if finding.reproduced:
        click.echo(f"This program shows it again:\n\n{finding.source}")
    else:
        click.echo(
            "The programs did not show it again: it depends on timing. Run again with "
            f"--seed {report.seed}. It came with this program:\n\n{finding.source}"
        )


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("property", no_wrap=True)
    for head in ("programs", "compared", "ties", "differences"):
        table.add_column(head, justify="right")
    for name, row in report.rows.items():
        cells = (row.programs, row.answers, row.ties, row.differences)
        table.add_row(name, *map(str, cells))
    return table


def _document(report: Report) -> dict[str, Any]:
    finding = report.finding
    return {
        "seed": report.seed,
        "programs": report.programs,
        "properties": {name: asdict(row) for name, row in report.rows.items()},
        "counts": report.counts,
        "difference": None
        if finding is None
        else {
            "property": finding.way.name,
            "what": str(finding.difference),
            "program": finding.source,
            "reproduced": finding.reproduced,
        },
    }


@contextmanager
def _progress(programs: int | None, minutes: float | None) -> Iterator[Callable[[Report], None]]:
    """Show a progress bar on standard error if it is a terminal; yield a function to update it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("0 programs", total=programs or 60 * (minutes or 1))

        def show(report: Report) -> None:
            done = report.programs if programs else bar.tasks[0].elapsed or 0
            differences = sum(row.differences for row in report.rows.values())
            text = f"{report.programs} programs, {differences} differences"
            bar.update(task, description=text, completed=done)

        yield show
