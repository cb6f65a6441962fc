"""Options shared by several commands, apart from engine, sampling and constraint options."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def repeats_option(default: int) -> Callable[[Command], Command]:
    """Return a decorator that adds `--repeats`: how often each row of a benchmark is measured."""
    return click.option(
        "--repeats",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Measure each row this many times, alternating between the systems.",
    )


def scale_option(default: float, help: str) -> Callable[[Command], Command]:
    """Return a decorator that adds `--scale`, a factor above 0 for the size of a benchmark."""
    return click.option(
        "--scale",
        type=click.FloatRange(0, min_open=True),
        default=default,
        show_default=True,
        help=help,
    )


def tower_option(default: str) -> Callable[[Command], Command]:
    """Return a decorator that adds `--tower`, the architecture of a random vision tower."""
    return click.option(
        "--tower",
        default=default,
        show_default=True,
        help="Architecture of the randomly initialised vision tower.",
    )


chip_option = click.option(
    "--chip", default="m2-ultra", show_default=True, help="Apple chip to model."
)


def setting(given: str) -> tuple[str, Any]:
    """Parse `NAME=VALUE` into (name, value); a value that is JSON is decoded, any other is text.

    Raises:
        BadParameter: there is no name or no `=`.
    """
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{given!r} must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def origin(given: str) -> str:
    """Check an origin of web pages: `SCHEME://HOST[:PORT]`, `*`, or `null` (pages from files).

    Raises:
        BadParameter: the text has another form.
    """
    parts = urlsplit(given)
    if given not in ("*", "null") and given != f"{parts.scheme}://{parts.netloc}":
        raise click.BadParameter(
            f"an origin is a scheme, a host and perhaps a port, such as http://localhost:8080, got "
            f"{given!r}"
        )
    return given
