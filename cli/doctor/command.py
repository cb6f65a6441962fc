"""`sgl-mlx doctor`: a check of machine, libraries and model, with remedies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sgl_mlx.cli.engine import model_option
from sgl_mlx.cli.options import json_option

if TYPE_CHECKING:
    from sgl_mlx.cli.doctor.check import Check

MARKS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@model_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """Check machine, libraries and model.

    Nothing is fetched or loaded. Ends with code 1 when a check fails.
    """
    from sgl_mlx.cli.doctor.checks import all_checks

    rows = list(_shown(all_checks(model), as_json))
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows], indent=2))
    ctx.exit(any(row.status == "fail" for row in rows))


def _shown(rows: Iterator[Check], as_json: bool) -> Iterator[Check]:
    for row in rows:
        if not as_json:
            mark = click.style(f"{row.status:<5}", fg=MARKS[row.status])
            click.echo(f"{mark} {row.name:<11} {row.detail}")
        yield row
