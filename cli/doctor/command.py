"""The command `sgl-mlx doctor`: checks this machine and prints what it found.

With `--report` it also measures, and writes all results to a file that can be pasted into an issue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.engine import model_option
from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from sgl_mlx.cli.doctor.check import Check

MARKS = {"ok": "green", "warn": "yellow", "fail": "red"}
REPORT = "sgl-mlx-report.md"


@click.command()
@model_option
@click.option(
    "--report",
    is_flag=False,
    flag_value=REPORT,
    metavar="[FILE]",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Also measure, for some minutes, and write all results to FILE ({REPORT}) for an issue.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, model: str | None, report: Path | None, as_json: bool) -> None:
    """Check machine, libraries and model.

    No model is loaded. If the model is not on this machine, its sizes are looked up on the hub.
    Ends with code 1 if a check fails.

    With --report, the kernels are also tested and tuned, and the engine's speed is compared with
    mlx-lm's for a minute. The file names no user, host or folder.
    """
    if report is not None:
        _report(model, report, as_json)
        return
    from sgl_mlx.cli.doctor.checks import all_checks

    rows = list(_shown(all_checks(model), as_json))
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows], indent=2))
    ctx.exit(any(row.status == "fail" for row in rows))


def _report(model: str | None, file: Path, as_json: bool) -> None:
    from rich.console import Console

    from sgl_mlx.blas import load_fast_blas

    load_fast_blas()  # before mlx is imported, or it would have no effect
    from sgl_mlx.cli.doctor.report import make_report, write

    console = Console(stderr=True, highlight=False)
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                click.echo(text, err=True)

        found = make_report(model, say)
    write(found.to_markdown(), file)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo(f"{file}: read it, then paste it into an issue")


def _shown(rows: Iterator[Check], as_json: bool) -> Iterator[Check]:
    for row in rows:
        if not as_json:
            mark = click.style(f"{row.status:<5}", fg=MARKS[row.status])
            click.echo(f"{mark} {row.name:<11} {row.detail}")
        yield row
