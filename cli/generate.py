"""`sgl-mlx generate`: continue one prompt."""

from __future__ import annotations

import sys
from typing import Any

import click

from sgl_mlx.cli import output
from sgl_mlx.cli.engine import model_option, open_engine
from sgl_mlx.cli.sampling import sampling_options
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import PromptError


@click.command()
@click.argument("prompt")
@model_option
@sampling_options
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--stream/--no-stream", default=None, help="Print as it comes; on for terminals.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
def generate(
    prompt: str,
    model: str | None,
    chat: bool,
    stream: bool | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Continue PROMPT; - reads it from standard input.

    With --json, standard output is one document of text, variables and stats; text streamed
    besides goes to standard error.
    """
    text = _readable(prompt)
    params = SamplingParams.of(sampling).validate()
    if stream is None:
        stream = sys.stdout.isatty() and not as_json
    with open_engine(model) as engine:
        if chat:
            message = {"role": "user", "content": text}
            text = engine.render_chat([message], add_generation_prompt=True)
        answer = output.complete(
            engine,
            (Text(text),),
            params,
            show=lambda piece: output.write(piece, err=as_json) if stream else None,
        )
        if stream:
            click.echo(err=as_json)
        if as_json:
            output.print_json(answer.text, {}, output.stats_of(engine))
        elif not stream:
            click.echo(answer.text)


def _readable(prompt: str) -> str:
    """The prompt, or standard input for `-`.

    Raises:
        PromptError: when it is not valid UTF-8.
    """
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode()
        prompt.encode()  # bytes the shell handed over undecoded are surrogates, and fail here
        return prompt
    except UnicodeError as error:
        raise PromptError(f"the prompt is not valid UTF-8: {error}") from error
