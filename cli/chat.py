"""`sgl-mlx chat`: talk with a model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click

from sgl_mlx.cli import output, streams
from sgl_mlx.cli.conversation import Conversation
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine
from sgl_mlx.cli.pictures import check_pictures, image_option
from sgl_mlx.cli.sampling import sampling_options
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import ImageError, PromptError, RequestError, TokenizerError
from sgl_mlx.lang.backend import Backend

HELP = """\
/image FILE  show a picture with the next question
/reset       start a new conversation
/stats       what was computed and what was found in the cache
/help        this list
/exit        leave, as Ctrl-D does; Ctrl-C stops an answer"""

DEFAULTS = SamplingParams(max_new_tokens=1024, temperature=0.7)


@click.command(epilog="Inside: /image FILE, /reset, /stats, /help, /exit; Ctrl-C stops an answer.")
@engine_options
@image_option
@click.option("--system", metavar="TEXT", help="What the system turn says.")
@sampling_options
def chat(
    options: EngineOptions, images: tuple[str, ...], system: str | None, **sampling: Any
) -> None:
    """Talk with a model; earlier turns are never computed again.

    Pictures of --image belong to the first question.
    """
    params = DEFAULTS.override(**sampling).validate()
    check_pictures(images)
    streams.check_input()
    with open_engine(options) as engine:
        conversation = Conversation(engine, params, system)
        click.echo(f"{engine.model_name} — /help lists what else you can type")
        _talk(engine, conversation, images)


def _talk(engine: Backend, conversation: Conversation, images: Iterable[str]) -> None:
    shown = list(images)
    while (line := _read()) is not None:
        match line.split():
            case []:
                continue
            case ["/exit" | "/quit"]:
                return
            case ["/image", _, *_]:
                shown += _picture(line.strip().removeprefix("/image").strip())
            case ["/image"]:
                click.echo("name the picture: /image FILE")
            case ["/reset"]:
                conversation.reset()
                shown.clear()
                click.echo("a new conversation")
            case ["/stats"]:
                click.echo(output.summary(output.stats_of(engine)) or "nothing computed yet")
            case ["/help"]:
                click.echo(HELP)
            case [word] if word.startswith("/"):
                click.echo(f"unknown command {word}\n{HELP}")
            case _:
                _answer(conversation, line, shown)
                shown.clear()


def _read() -> str | None:
    """Read the next line; None at the end of the input. Ctrl-C discards the line, as in a shell."""
    with suppress(ImportError):  # readline adds line editing and history to input()
        import readline  # noqa: F401

    while True:
        try:
            return streams.read_line("> " if streams.is_terminal(sys.stdin) else "")
        except PromptError as error:
            click.echo(f"{error}; write it in UTF-8", err=True)
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()


def _picture(path: str) -> list[str]:
    """Return `[path]` if the file is a picture; otherwise print the error and return `[]`."""
    try:
        check_pictures([path])
    except ImageError as error:
        click.echo(str(error), err=True)
        return []
    click.echo("shown with the next question")
    return [path]


def _answer(conversation: Conversation, question: str, images: list[str]) -> None:
    try:
        conversation.ask(question, show=output.write, images=images)
        click.echo()
    except KeyboardInterrupt:
        click.echo(" …")
    except (RequestError, TokenizerError) as error:
        click.echo(f"{error}\n/reset starts a new conversation", err=True)
