"""Options that several commands share; those of engines and of sampling have files of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def repeats_option(default: int) -> Callable[[Command], Command]:
    """Give a command the number of measurements of each row; it arrives as `repeats`."""
    return click.option(
        "--repeats",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Measure each row this many times, alternating between the systems.",
    )


def scale_option(default: float, help: str) -> Callable[[Command], Command]:
    """Give a command the size of a benchmark, a factor above 0; it arrives as `scale`."""
    return click.option(
        "--scale",
        type=click.FloatRange(0, min_open=True),
        default=default,
        show_default=True,
        help=help,
    )


def tower_option(default: str) -> Callable[[Command], Command]:
    """Give a command the vision tower for models without one; it arrives as `tower`."""
    return click.option(
        "--tower",
        default=default,
        show_default=True,
        help="Architecture of the randomly initialised vision tower.",
    )


chip_option = click.option(
    "--chip", default="m2-ultra", show_default=True, help="Apple chip to model."
)
