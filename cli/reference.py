"""Generator of `docs/cli.md` from the commands' own help: `python -m sgl_mlx.cli.reference`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sgl_mlx.cli.commands import main

INTRODUCTION = """\
# The command line

Made from the commands' own help by `make docs`; edit `cli/`, not this page.

Exit codes: 0 all went well, 1 an error (one message; `--debug` shows the traceback), 2 wrong
usage, 130 Ctrl-C.
"""


def reference() -> str:
    """Return the whole page as Markdown."""
    ctx = click.Context(main, info_name="sgl-mlx", **main.context_settings)
    return "\n".join([INTRODUCTION, *_sections(main, ctx)])


def _sections(command: click.Command, ctx: click.Context) -> Iterator[str]:
    ctx.terminal_width = 90  # makes the page independent of the terminal
    text = command.get_help(ctx)
    yield f"## `{ctx.command_path}`\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.commands[name]
            yield from _sections(inner, click.Context(inner, info_name=name, parent=ctx))


if __name__ == "__main__":
    click.echo(reference(), nl=False)
