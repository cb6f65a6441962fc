"""`sgl-mlx run`: run a program file."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine


@click.command()
@click.argument("target", metavar="FILE[:FUNCTION]")
@click.option("--arg", "pairs", multiple=True, metavar="NAME=VALUE", help="Repeatable; see above.")
@engine_options
@click.option("--stream", is_flag=True, help="Print the text as it comes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.option("--as-sglang", is_flag=True, help="Let the file's `import sglang` mean sgl_mlx.")
@click.pass_context
def run(
    ctx: click.Context,
    target: str,
    pairs: tuple[str, ...],
    options: EngineOptions,
    stream: bool,
    as_json: bool,
    as_sglang: bool,
) -> None:
    """Run a program written in the language.

    FUNCTION may be left out when the file has one @function, or one called main.

    A VALUE that is JSON is read as such: 3, true, ["a", "b"]; any other is text, and quotes make
    text of what is JSON: '"3"'.

    With --json, standard output is one document of text, variables and stats; what the program
    prints, and text streamed besides, goes to standard error.
    """
    from sgl_mlx import install_as_sglang
    from sgl_mlx.cli import program
    from sgl_mlx.lang.config import set_default_backend

    if as_sglang:
        install_as_sglang()
    path, name = program.split_target(target)
    errors = nullcontext() if ctx.find_root().params["debug"] else program.own_errors(path)
    with redirect_stdout(sys.stderr if as_json else sys.stdout), errors:
        function = program.choose(program.load(path), path, name)
        arguments = program.read_arguments(function, pairs)
        with open_engine(options) as engine:
            set_default_backend(engine)
            state = function.run(stream=stream, **arguments)
            for piece in state.text_iter() if stream else ():
                output.write(piece)
            text, variables = state.text(), program.variables(state)
            stats = output.stats_of(engine)
    if as_json:
        output.print_json(text, variables, stats)
    else:
        click.echo("" if stream else text)
        click.echo(output.summary(stats), err=True)
