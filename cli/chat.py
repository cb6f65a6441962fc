"""`sgl-mlx chat`: talk with a model."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.conversation import Conversation
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine
from sgl_mlx.cli.sampling import sampling_options
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import RequestError
from sgl_mlx.lang.backend import Backend

HELP = """\
/reset  start a new conversation
/stats  what was computed and what was found in the cache
/help   this list
/exit   leave, as Ctrl-D does; Ctrl-C stops an answer"""

DEFAULTS = SamplingParams(max_new_tokens=1024, temperature=0.7)


@click.command(epilog="Inside: /reset, /stats, /help, /exit; Ctrl-C stops an answer.")
@engine_options
@click.option("--system", metavar="TEXT", help="What the system turn says.")
@sampling_options
def chat(options: EngineOptions, system: str | None, **sampling: Any) -> None:
    """Talk with a model; earlier turns are never computed again."""
    params = DEFAULTS.override(**sampling).validate()
    with open_engine(options) as engine:
        click.echo(f"{engine.model_name} — /help lists what else you can type")
        _talk(engine, Conversation(engine, params, system))


def _talk(engine: Backend, conversation: Conversation) -> None:
    while (line := _read()) is not None:
        match line.split():
            case []:
                continue
            case ["/exit" | "/quit"]:
                return
            case ["/reset"]:
                conversation.reset()
                click.echo("a new conversation")
            case ["/stats"]:
                click.echo(output.summary(output.stats_of(engine)) or "nothing computed yet")
            case ["/help"]:
                click.echo(HELP)
            case [word] if word.startswith("/"):
                click.echo(f"unknown command {word}\n{HELP}")
            case _:
                _answer(conversation, line)


def _read() -> str | None:
    """The next line; None at its end. Ctrl-C throws the line away, as shells do."""
    with suppress(ImportError):  # gives input() editing and history where Python has it
        import readline  # noqa: F401

    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()


def _answer(conversation: Conversation, question: str) -> None:
    try:
        conversation.ask(question, show=output.write)
        click.echo()
    except KeyboardInterrupt:
        click.echo(" …")
    except RequestError as error:
        click.echo(f"{error}\n/reset starts a new conversation", err=True)
