"""Sampling options of the commands that generate: each is a field of `SamplingParams`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option("--max-tokens", "max_new_tokens", type=int, help="Stop after so many tokens."),
    click.option("--temperature", type=float, help="0 always takes the likeliest token."),
    click.option("--top-p", type=float, help="Keep the likeliest tokens with this mass."),
    click.option("--top-k", type=int, help="Keep so many of the likeliest tokens."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--frequency-penalty", type=float, help="Against repeating tokens often."),
    click.option("--presence-penalty", type=float, help="Against repeating tokens at all."),
    click.option("--repetition-penalty", type=float, help="Above 1 also against prompt tokens."),
    click.option("--ignore-eos", is_flag=True, help="Go on through the model's end tokens."),
)


def sampling_options(command: Command) -> Command:
    """Give a command all of `OPTIONS`; what is not given arrives as None, and defaults hold."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
