"""`sgl-mlx bench suite`: workloads of SGLang's paper on our engine and on compared systems."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sgl_mlx.cli.bench.peer_options import llama_server_option, peers_option
from sgl_mlx.cli.bench.suite_run import SuiteRun
from sgl_mlx.cli.engine import engine_options
from sgl_mlx.cli.options import json_option, repeats_option, scale_option, tower_option

_OF_REPORTS = frozenset({"source", "html", "svg", "as_json"})
"""Parameters that may be combined with --from."""

file_type = click.Path(dir_okay=False)
existing_file_type = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
@engine_options
@peers_option("system")
@llama_server_option
@click.option(
    "--ours",
    type=click.Choice(("in-process", "http")),
    default="in-process",
    show_default=True,
    help="Run our engine in this process, or our server with the HTTP client of its peers.",
)
@click.option(
    "--backend",
    metavar="URL",
    help="Measure the server or router at this address, which serves --model, in place of our "
    "engine. It runs the workloads' programs, or with --ours http their HTTP versions.",
)
@click.option(
    "--ablation",
    "ablations",
    multiple=True,
    metavar="NAME",
    help="Compare with our engine without this part; repeatable.",
)
@scale_option(0.1, "Size of the workloads; 1 is the paper's.")
@click.option(
    "--data",
    type=existing_file_type,
    help="Rows for one workload: a file with a JSON object on each line.",
)
@repeats_option(1)
@click.option(
    "--timeout",
    default=300.0,
    show_default=True,
    help="Give up on a peer that is silent for this many seconds.",
)
@tower_option("clip-b-224")
@click.option("--html", type=file_type, help="Also write a page with plots and tables.")
@click.option("--svg", type=file_type, help="Also write a plot of the ratios.")
@click.option(
    "--from",
    "source",
    type=existing_file_type,
    metavar="DOCUMENT.json",
    help="Run nothing: report what an earlier run printed.",
)
@click.option("--list", "list_only", is_flag=True, help="List workloads and ablations, and end.")
@json_option
@click.pass_context
def suite(
    ctx: click.Context,
    /,
    html: str | None,
    svg: str | None,
    source: str | None,
    list_only: bool,
    as_json: bool,
    **run: Any,
) -> None:
    """Run the paper's workloads on our engine and on its peers.

    All systems run the same weights, get the same prompts and write the same number of tokens;
    where they do not, their times are not compared. A peer that is missing or fails is reported,
    and the rest goes on. Prints a table and ends with one JSON line.

    With --data, name one workload. Each line of the file is a JSON object with some or all of the
    arguments of the workload's program; missing arguments are generated. `--list` shows the names
    of the arguments.
    """
    if list_only:
        _list()
        return
    document = SuiteRun(**run).document() if source is None else _read(ctx, source)
    _write_reports(document, html, svg)
    if not as_json:
        from rich.console import Console

        from sgl_mlx.benchmarks.suite.report.table import suite_table

        Console().print(suite_table(document))
    click.echo(json.dumps(document))


def _list() -> None:
    from sgl_mlx.benchmarks.suite.ablations import ABLATIONS
    from sgl_mlx.benchmarks.suite.workloads.catalogue import WORKLOADS

    click.echo("workloads:")
    for name, workload in WORKLOADS.items():
        click.echo(f"  {name:<24}{workload.about}")
        click.echo(f"  {'':<24}--data takes {', '.join(workload.program.arg_names)}")
    click.echo("ablations:")
    for name, ablation in ABLATIONS.items():
        click.echo(f"  {name:<24}{ablation.about}")


def _read(ctx: click.Context, source: str) -> dict[str, Any]:
    """Read the JSON document of an earlier run.

    Raises:
        UsageError: an option was given that has no effect without a run.
    """
    from sgl_mlx.benchmarks.suite.report.document import read

    given = {
        parameter.name: parameter
        for parameter in ctx.command.params
        if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    idle = [parameter for name, parameter in given.items() if name not in _OF_REPORTS]
    if idle:
        raise click.UsageError(
            f"--from runs nothing, so {idle[0].get_error_hint(ctx)} has no effect; leave it out"
        )
    return read(Path(source))


def _write_reports(document: Mapping[str, Any], html: str | None, svg: str | None) -> None:
    from sgl_mlx.benchmarks.suite.report.page import write_page
    from sgl_mlx.benchmarks.suite.report.svg import write_svg

    for path, write in ((html, write_page), (svg, write_svg)):
        if path is not None:
            write(document, Path(path))
            click.echo(f"wrote {path}", err=True)
