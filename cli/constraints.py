"""Options that constrain the output; a command line may give at most one of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from sgl_mlx.cli import streams

Command = TypeVar("Command", bound=Callable[..., Any])
_NAMES = ("regex", "json_schema", "grammar", "choices")


def _text_of(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Read the text of the file at `path`; None if the option is not given."""
    return None if path is None else streams.read_file(path)


def _schema_of(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return a JSON schema's text: `value` if it begins with `{`, else that of the file `value`.

    Raises:
        click.BadParameter: the text is not a JSON schema, or the file cannot be read.
    """
    written = value is not None and value.lstrip().startswith("{")
    text = value if written else _text_of(ctx, param, value)
    if text is None:
        return None
    where = "the schema" if written else repr(value)
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{where} is not JSON: {error}") from error
    if not isinstance(schema, (dict, bool)):
        raise click.BadParameter(f"{where} is not a JSON schema, which is an object, true or false")
    return text


def _choices_of(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Split a list of choices at commas outside double quotes; spaces are kept.

    None, if the option is not given, stays None.

    Raises:
        click.BadParameter: a choice is empty, or the quotes are wrong.
    """
    if value is None:
        return None
    try:
        choices = tuple(*csv.reader([value], strict=True))
    except csv.Error as error:
        raise click.BadParameter(f"{value!r} is no list: {error}") from error
    if not choices or not all(choices):
        raise click.BadParameter(f"there is an empty choice in {value!r}")
    return choices


OPTIONS = (
    click.option("--regex", metavar="PATTERN", help="Constrain the whole output to this regex."),
    click.option(
        "--json-schema",
        callback=_schema_of,
        metavar="FILE|JSON",
        help="Constrain the output to a JSON schema: a file, or the schema itself.",
    ),
    click.option(
        "--grammar",
        callback=_text_of,
        metavar="FILE",
        help="Constrain the output to a Lark grammar.",
    ),
    click.option(
        "--choices",
        callback=_choices_of,
        metavar="A,B,...",
        help='Print the likeliest of these texts; "A,1",B keeps a comma.',
    ),
)


def constraint_options(command: Command) -> Command:
    """Add all of `OPTIONS` to a command; an option that is not given is passed as None."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def check_constraints(given: Mapping[str, Any]) -> None:
    """Raise `UsageError` for more than one constraint, or for sampling options with `--choices`."""
    constraints = [_flag(name) for name in _NAMES if given.get(name) is not None]
    if len(constraints) > 1:
        raise click.UsageError(f"{' and '.join(constraints)} exclude each other; give one")
    if given.get("choices") is None:
        return
    idle = [name for name, value in given.items() if value and name not in _NAMES]
    if idle:
        raise click.UsageError(
            f"{_flag(idle[0])} has no effect with --choices, which only scores; leave it out"
        )


def _flag(name: str) -> str:
    return "--" + {"max_new_tokens": "max_tokens"}.get(name, name).replace("_", "-")
