"""`sgl-mlx compile`: compile a program; explain, print, save or run the result."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine

if TYPE_CHECKING:
    from sgl_mlx.compiler.graph.graph import (
        Graph,
    )
    from sgl_mlx.compiler.pipeline import Reorder
    from sgl_mlx.compiler.program import CompiledProgram
    from sgl_mlx.lang.backend import Backend


class Wish(NamedTuple):
    """The options of one `sgl-mlx compile` command line."""

    target: str
    pairs: tuple[str, ...]
    reorder: Reorder
    explain: bool
    graph: str | None
    run: bool
    save: str | None
    as_json: bool
    as_sglang: bool


@click.command("compile")
@click.argument("target", metavar="FILE[:FUNCTION]")
@click.option("--explain", is_flag=True, help="Say what is compiled, and which line ends it.")
@click.option("--graph", type=click.Choice(["tree", "dot", "json"]), help="Print the graph.")
@click.option("--save", type=click.Path(dir_okay=False), help="Write the graph to a JSON file.")
@click.option("--run", is_flag=True, help="Run the compiled program.")
@click.option("--arg", "pairs", multiple=True, metavar="NAME=VALUE", help="As in `sgl-mlx run`.")
@click.option(
    "--reorder",
    type=click.Choice(["rules"]),
    help="Move instructions ahead of arguments, where the rules say that the meaning stays.",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--as-sglang", is_flag=True, help="Let the file's `import sglang` mean sgl_mlx.")
@click.pass_context
def compile_command(ctx: click.Context, /, options: EngineOptions, **wishes: Any) -> None:
    """Compile a program; explain, print, save or run the result.

    FILE is a Python file, as for `sgl-mlx run`, or a graph that --save wrote. Without --graph,
    --save and --run, the program is explained, as with --explain.

    In a printed or saved graph, arguments that are texts stay variable. The values of all other
    arguments are part of the graph.
    """
    from sgl_mlx import install_as_sglang

    wish = Wish(**wishes)
    path = _path(wish.target)
    alias = install_as_sglang() if wish.as_sglang else nullcontext()
    debug = ctx.find_root().params["debug"]
    shown = redirect_stdout(sys.stderr if wish.as_json else sys.stdout)
    with alias, shown, _errors(path, debug):
        compiled = _compiled(wish)  # before a model is loaded, so that a wrong file fails at once
        with open_engine(options) if wish.run else nullcontext() as engine:
            document = _fulfil(wish, compiled, engine)
    if wish.as_json:
        output.print_document(document)


def _fulfil(wish: Wish, compiled: CompiledProgram, engine: Backend | None) -> dict[str, Any]:
    """Do what the options ask for; print the results, and return them as one JSON document."""
    from sgl_mlx.cli import program

    arguments = program.read_arguments(compiled, wish.pairs) if wish.run else _some(wish)
    document: dict[str, Any] = {}
    if wish.explain or not (wish.graph or wish.save or wish.run):
        explained = compiled.explain(**arguments)
        document["explain"] = _plain(explained)
        _say(wish, str(explained))
    if wish.graph:
        document["graph"] = _drawn(compiled.graph(**arguments), wish.graph)
        _say(wish, document["graph"])
    if wish.save:
        document.update(_saved(wish, compiled.graph(**arguments), wish.save))
    if wish.run and engine is not None:
        document.update(_ran(wish, compiled, arguments, engine))
    return document


def _compiled(wish: Wish) -> CompiledProgram:
    from sgl_mlx.cli import program
    from sgl_mlx.compiler.graph.serialise import load
    from sgl_mlx.compiler.pipeline import standard_passes
    from sgl_mlx.compiler.program import CompiledProgram

    path = _path(wish.target)
    if path.suffix == ".json":
        if wish.reorder:
            raise click.UsageError(
                "--reorder rewrites a Python program, but FILE is a saved graph; leave it out"
            )
        return CompiledProgram.from_graph(load(path))
    _, name = program.split_target(wish.target)
    chosen = program.choose(program.load(path), path, name)
    if isinstance(chosen, CompiledProgram):
        return chosen
    return CompiledProgram.of(chosen, standard_passes(wish.reorder))


def _ran(
    wish: Wish, compiled: CompiledProgram, arguments: dict[str, Any], engine: Backend
) -> dict[str, Any]:
    from sgl_mlx.cli import program

    state = compiled.run(backend=engine, **arguments)
    text, variables = state.text(), program.variables(state)
    stats = output.stats_of(engine)
    if not wish.as_json:
        click.echo(text)
        click.echo(output.summary(stats), err=True)
    return {"text": text, "variables": variables, "stats": stats}


def _saved(wish: Wish, graph: Graph, path: str) -> dict[str, Any]:
    """Write the graph to a file; warn if the graph cannot run without its program.

    Returns the entries for the JSON document of the command.
    """
    from sgl_mlx.compiler.graph.serialise import save

    save(graph, path)
    _say(wish, f"wrote {path}")
    needs = graph.needs_program
    if needs is not None:
        click.echo(f"warning: {path} cannot be run on its own: {needs}", err=True)
    return {"saved": path, "needs_program": needs}


def _drawn(graph: Graph, how: str) -> str:
    from sgl_mlx.compiler.graph import serialise, show

    drawings = {
        "tree": show.pretty,
        "dot": show.dot,
        "json": serialise.dumps,
    }
    return drawings[how](graph)


def _some(wish: Wish) -> dict[str, Any]:
    """Parse the arguments for a graph that is not run; missing arguments are traced as texts."""
    from sgl_mlx.cli import program

    return program.read_pairs(wish.pairs)


def _plain(explained: Any) -> dict[str, Any]:
    remarks = [
        {
            "file": r.line.file if r.line else None,
            "line": r.line.number if r.line else None,
            "code": r.code,
            "text": r.text,
        }
        for r in explained.remarks
    ]
    return {"compiled": explained.compiled, "steps": explained.steps, "remarks": remarks}


def _say(wish: Wish, text: str) -> None:
    if not wish.as_json:
        click.echo(text)


def _path(target: str) -> Path:
    from sgl_mlx.cli import program

    return program.split_target(target)[0]


def _errors(path: Path, debug: bool) -> Any:
    from sgl_mlx.cli import program

    return nullcontext() if debug else program.own_errors(path)
