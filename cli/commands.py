"""The group of all commands, which also handles errors and Ctrl-C."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any

import click

from sgl_mlx.cli import streams
from sgl_mlx.cli.bench import bench
from sgl_mlx.cli.cache_doctor import cache_doctor
from sgl_mlx.cli.chat import chat
from sgl_mlx.cli.compile import compile_command
from sgl_mlx.cli.demo import demo
from sgl_mlx.cli.doctor import doctor
from sgl_mlx.cli.generate import generate
from sgl_mlx.cli.kernels import kernels
from sgl_mlx.cli.models import models
from sgl_mlx.cli.run import run
from sgl_mlx.cli.selfcheck import selfcheck
from sgl_mlx.cli.serve import serve
from sgl_mlx.errors import SglError
from sgl_mlx.runtime.ranks.launch import launched

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report a process that SIGINT ended."""

_LONGEST = 2000
"""Most characters of an error message."""


class Commands(click.Group):
    """A click group that reports an `SglError` or `OSError` in one message and exits with code 1.

    With `--debug` the error is raised instead. After Ctrl-C the exit code is `INTERRUPTED`.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line, after preparing the standard streams; see `streams.prepare`.

        Args:
            args: the arguments; None means the arguments of the process.
        """
        streams.prepare()
        _join_ranks()
        given = sys.argv[1:] if args is None else args
        return super().main(list(given), *rest, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, streams.arguments(args))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SglError as error:
            if ctx.params.get("debug"):
                raise
            notes = getattr(error, "__notes__", [])  # notes name the line of the program
            raise click.ClickException("\n".join([str(error), *notes])) from error
        except OSError as error:
            if error.errno == errno.EPIPE or ctx.params.get("debug"):  # click handles EPIPE
                raise
            streams.abandon_output()
            raise _shorten(click.ClickException(str(error))) from error
        except click.ClickException as error:
            _shorten(error)
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _join_ranks() -> None:
    """Connect all ranks if `mlx.launch` started this process; only rank 0 goes on from here."""
    try:
        if (launch := launched()) is not None:
            from sgl_mlx.runtime.ranks.join import join  # imports mlx, which takes a second

            join(launch)
    except SglError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _shorten(error: click.ClickException) -> click.ClickException:
    """Cut the middle out of an error's message that is longer than `_LONGEST`; return the error."""
    message, half = str(error.message), _LONGEST // 2
    left_out = len(message) - _LONGEST
    if left_out > 0:
        cut = f"{message[:half]} … ({left_out:,} characters left out) … {message[-half:]}"
        vars(error)["message"] = cut
    return error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="sgl-mlx", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="SGL_MLX_DEBUG", help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Run LLM programs on a local model, with shared prefixes computed once."""


for command in (
    *(demo, run, compile_command, generate, chat, serve),
    *(models, bench, kernels, doctor, selfcheck, cache_doctor),
):
    main.add_command(command)
