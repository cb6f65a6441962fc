"""`sgl-mlx run`: run a program file."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_backend
from sgl_mlx.lang.backend import Backend
from sgl_mlx.names import closest


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="FILE[:FUNCTION]")
@click.argument("script_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]")
@click.option("--arg", "pairs", multiple=True, metavar="NAME=VALUE", help="Repeatable; see above.")
@engine_options
@click.option("--backend", metavar="URL", help="Run on this server, or router, not on --model.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="SGL_MLX_API_KEY",
    show_envvar=True,
    help="API key for --backend.",
)
@click.option("--stream", is_flag=True, help="Print the text as it comes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.option("--as-sglang", is_flag=True, help="Let the file's `import sglang` mean sgl_mlx.")
@click.pass_context
def run(
    ctx: click.Context,
    target: str,
    script_args: tuple[str, ...],
    pairs: tuple[str, ...],
    options: EngineOptions,
    backend: str | None,
    api_key: str | None,
    stream: bool,
    as_json: bool,
    as_sglang: bool,
) -> None:
    """Run a program of a Python file.

    FUNCTION may be left out when the file has one @function, or one called main.

    A VALUE that is JSON is decoded: 3, true, ["a", "b"]. Any other VALUE is text. To pass a text
    that looks like JSON, write it as a JSON string: '"3"'.

    With --json, standard output is one document of text, variables, the function's return value
    and stats. All that the program prints, and the text of --stream, goes to standard error.

    With --as-sglang and without FUNCTION, --arg, --stream and --json, the whole file runs, as with
    `python FILE ARGS`. Its programs run on the backend that the file sets, else on --backend or
    --model. If --model is given, it also replaces the models that the file opens.

    With --backend no counts are shown, because a server counts for all its clients together.
    """
    from sgl_mlx import install_as_sglang
    from sgl_mlx.cli import program

    if target.startswith("-"):
        _refuse_option(ctx, target)
        raise click.NoSuchOption(target, ctx=ctx)
    path, name = program.split_target(target)
    whole = as_sglang and not (name or pairs or stream or as_json)
    if script_args and not whole:
        _refuse_option(ctx, script_args[0])
        raise click.UsageError(
            f"unexpected {script_args[0]!r}: arguments of a function are given with --arg "
            "NAME=VALUE; those of a whole file go with --as-sglang, without FUNCTION or --arg"
        )
    opened = open_backend(options, backend, api_key)
    errors = nullcontext() if ctx.find_root().params["debug"] else program.own_errors(path)
    if whole:
        from sgl_mlx.cli.script import run_script

        with errors:
            run_script(path, script_args, options, opened)
        return
    with install_as_sglang() if as_sglang else nullcontext(), errors:
        _run_function(path, name, pairs, opened, stream, as_json, counted=backend is None)


def _refuse_option(ctx: click.Context, argument: str) -> None:
    """Refuse an argument that looks like a misspelt option of this command.

    Raises:
        click.NoSuchOption: the argument begins with `-`, and an option is similar.
    """
    known = [name for parameter in ctx.command.params for name in parameter.opts]
    name = argument.partition("=")[0]
    if name.startswith("-") and (guess := closest(name, known)):
        raise click.NoSuchOption(name, possibilities=[guess], ctx=ctx)


def _run_function(
    path: Path,
    name: str | None,
    pairs: tuple[str, ...],
    opened: AbstractContextManager[Backend],
    stream: bool,
    as_json: bool,
    counted: bool,
) -> None:
    from sgl_mlx.cli import program
    from sgl_mlx.lang.config import set_default_backend

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        function = program.choose(program.load(path), path, name)
        arguments = program.read_arguments(function, pairs)
        with opened as backend:
            set_default_backend(backend)
            state = function.run(stream=stream, **arguments)
            for piece in state.text_iter() if stream else ():
                output.write(piece)
            text, variables = state.text(), program.variables(state)
            stats = output.stats_of(backend) if counted else {}
    if as_json:
        output.print_json(text, variables, stats, **program.returned(state))
        return
    click.echo("" if stream else text)
    for value in program.returned(state).values():
        click.echo(f"returned: {value!r}")
    if counted:
        click.echo(output.summary(stats), err=True)
