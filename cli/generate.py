"""`sgl-mlx generate`: continue one prompt."""

from __future__ import annotations

import sys
from typing import Any

import click

from sgl_mlx.cli import output, streams
from sgl_mlx.cli.constraints import check_constraints, constraint_options
from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine
from sgl_mlx.cli.logprobs import logprobs_option, rows_of, rows_of_choices
from sgl_mlx.cli.options import json_option
from sgl_mlx.cli.pictures import check_pictures, image_option, showing, with_pictures
from sgl_mlx.cli.sampling import sampling_options
from sgl_mlx.core import Prompt, SamplingParams
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.choices import token_length_normalized
from sgl_mlx.lang.pictures import MARK
from sgl_mlx.waits import result_of


@click.command()
@click.argument("prompt")
@engine_options
@sampling_options
@constraint_options
@logprobs_option
@image_option
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--no-token-healing", is_flag=True, help="Keep the last token of PROMPT as it is.")
@click.option(
    "--stream/--no-stream", default=None, help="Print text as it is generated; on for terminals."
)
@json_option
def generate(
    prompt: str,
    options: EngineOptions,
    images: tuple[str, ...],
    chat: bool,
    no_token_healing: bool,
    stream: bool | None,
    as_json: bool,
    choices: tuple[str, ...] | None,
    logprobs: int | None,
    **sampling: Any,
) -> None:
    """Continue PROMPT; if PROMPT is -, it is read from standard input.

    With --json, standard output is one document of text, variables and stats, and logprobs if
    requested; with --stream, the text also goes to standard error.

    With --image, PROMPT is put into the chat template after the pictures. A PROMPT that says with
    <image> where each picture stands is used without the template, unless --chat is given.
    """
    text = streams.read_all() if prompt == "-" else prompt
    check_pictures(images)
    chat = chat or (bool(images) and MARK not in text)
    text = showing(images, text)
    check_constraints({**sampling, "choices": choices})
    params = SamplingParams.of({**sampling, "token_healing": not (chat or no_token_healing)})
    params = _with_logprobs(params, logprobs).validate()
    if stream is None:
        stream = streams.is_terminal(sys.stdout) and not as_json
    with open_engine(options) as engine:
        if chat:
            message = {"role": "user", "content": text}
            text = engine.render_chat([message], add_generation_prompt=True)
        parts = with_pictures(text, images)
        if choices is not None:
            _choose(engine, parts, choices, logprobs is not None, as_json)
        else:
            _continue(engine, parts, params, stream, as_json)


def _continue(
    engine: Backend, prompt: Prompt, params: SamplingParams, stream: bool, as_json: bool
) -> None:
    answer = output.complete(
        engine,
        prompt,
        params,
        show=lambda piece: output.write(piece, err=as_json) if stream else None,
    )
    if stream:
        click.echo(err=as_json)
    scored = {"logprobs": answer.logprobs.to_dict()} if answer.logprobs else {}
    if as_json:
        output.print_json(answer.text, {}, output.stats_of(engine), **scored)
        return
    if not stream:
        click.echo(answer.text)
    for row in rows_of(answer.logprobs) if answer.logprobs else ():
        click.echo(row)


def _choose(
    engine: Backend, prompt: Prompt, choices: tuple[str, ...], with_scores: bool, as_json: bool
) -> None:
    decision = token_length_normalized.of(result_of(engine.score(prompt, choices)))
    if as_json:
        scored = {"logprobs": {"choices": choices, **decision.meta_info}} if with_scores else {}
        output.print_json(decision.decision, {}, output.stats_of(engine), **scored)
        return
    click.echo(decision.decision)
    for row in rows_of_choices(choices, decision) if with_scores else ():
        click.echo(row)


def _with_logprobs(params: SamplingParams, alternatives: int | None) -> SamplingParams:
    if alternatives is None:
        return params
    return params.override(
        return_logprob=True, top_logprobs_num=alternatives, return_text_in_logprobs=True
    )
