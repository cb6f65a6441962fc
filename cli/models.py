"""`sgl-mlx models`: list, fetch and describe models."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sgl_mlx.cli.engine import fetch_model
from sgl_mlx.cli.options import json_option

GIGA = 1e9


@click.group(invoke_without_command=True)
@click.option(
    "--architectures",
    is_flag=True,
    help="List mlx-lm's architectures: batched (ragged), one request at a time (dense), or "
    "unsupported, and why.",
)
@click.pass_context
def models(ctx: click.Context, architectures: bool) -> None:
    """List, fetch and describe models."""
    if architectures:
        from sgl_mlx.models.architectures import counts, table

        for row in table().values():
            click.echo(f"{row.name:<24}  {row.path:<11}  {row.note}".rstrip())
        click.echo(", ".join(f"{n} {path}" for path, n in counts().items()), err=True)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@models.command("list")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False))
def list_models(folder: str | None) -> None:
    """List models that need no network.

    These are the models in installed packages, in the hub's cache, and in FOLDER if it is given.
    """
    from sgl_mlx.models.resolve import list_local

    found = list_local(folder)
    width = max((len(model.name) for model in found), default=0)
    for model in found:
        click.echo(f"{model.name:<{width}}  {model.size / GIGA:6.2f} GB  {model.path}")
    if not found:
        click.echo("no models here yet; `sgl-mlx models pull ORG/NAME` fetches one", err=True)


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Fetch a model from the Hugging Face hub into its cache."""
    click.echo(fetch_model(name))


@models.command()
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Describe a model from its headers, without loading it."""
    from sgl_mlx.models.info import describe

    facts = describe(fetch_model(name)).to_dict()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        figure = f"{value:,}" if isinstance(value, int) else value
        click.echo(f"{key.replace('_', ' '):<14}  {figure}")


@models.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def kv(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show how many bytes a token's keys and values take in memory and on disk.

    Each of FOLDERS has a `config.json`; without FOLDERS, known models are listed. The sizes are
    computed from the configuration; no weights are needed.
    """
    from sgl_mlx.benchmarks.modelled.kv_sizes import HEADS, of_config, rows
    from sgl_mlx.models.safetensors_file import read_config

    found = [of_config(str(x), read_config(x)) for x in folders] if folders else list(rows())
    if as_json:
        click.echo(json.dumps({"computed": True, "models": [vars(row) for row in found]}, indent=2))
        return
    cells = [HEADS, *(row.cells() for row in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *sizes in cells:
        figures = (size.rjust(width) for size, width in zip(sizes, widths[1:], strict=True))
        click.echo("  ".join([name.ljust(widths[0]), *figures]))
