"""Options that name the systems which a benchmark compares with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from sgl_mlx.cli.bench.suite_run import PEERS

Command = Callable[..., Any]

llama_server_option = click.option(
    "--llama-server", metavar="PATH", help="llama.cpp's server, if it is not on PATH."
)


def peers_option(what: str) -> Callable[[Command], Command]:
    """Add `--peer`, whose values a command gets as `peers`; `what` says what a peer is."""
    return click.option(
        "--peer",
        "peers",
        multiple=True,
        type=click.Choice(PEERS),
        help=f"Compare with this {what}; repeatable.",
    )
