"""Sampling options of commands that generate text; each sets a field of `SamplingParams`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option("--max-tokens", "max_new_tokens", type=int, help="Stop after this many tokens."),
    click.option("--temperature", type=float, help="0 is greedy: always the likeliest token."),
    click.option(
        "--top-p", type=float, help="Sample from the likeliest tokens with this total probability."
    ),
    click.option("--top-k", type=int, help="Sample from this many of the likeliest tokens."),
    click.option(
        "--min-p", type=float, help="Drop tokens less probable than this share of the likeliest."
    ),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help="Stop before this text; repeatable."
    ),
    click.option("--seed", type=int, help="Make sampling repeatable."),
    click.option(
        "--frequency-penalty",
        type=float,
        help="Lower the logit of a token for each time it was generated.",
    ),
    click.option(
        "--presence-penalty", type=float, help="Lower the logit of a token that was generated."
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        help="Above 1, lower the logits of tokens in prompt or output.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Continue past the model's end tokens."),
)


def sampling_options(command: Command) -> Command:
    """Add all of `OPTIONS` to a command; options that are not given are None, False or empty."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
