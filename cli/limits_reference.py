"""Generator of `docs/limits.md` from docstrings: `python -m sgl_mlx.cli.limits_reference`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import click

from sgl_mlx.cli.docstrings import Docstring, table
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.server.errors import LIMIT_ANSWERS

INTRODUCTION = """\
# Bounds on requests

Made from docstrings by `make docs`; edit those, not this page.

A request that asks for more than a bound allows gets an error that names the bound, its value and
the option that raises it. No other request notices. In a program the bounds are
`Engine(..., limits=Limits(max_n=16))` or `limits={"max_n": 16}`, with `Limits` from
`sgl_mlx.limits`; in the server `sgl-mlx serve --limit max_n=16`, where `--max-requests`,
`--max-body-size` and `--request-timeout` have names of their own. The last column is the HTTP
status of the answer; "-" bounds what the server does by itself.
"""
ENGINE = """
## Options of the engine that are bounds

A prompt over `context_length` or the KV pool is a `ContextLengthError` (status 400). Requests
beyond the others wait for their turn, and caches drop what was used least recently. LoRA adapters
and only the command that starts the server names further models; `--memory` bounds them together.
"""
_ENGINE = (
    *("context_length", "max_total_tokens", "max_running_requests", "chunked_prefill_size"),
    *("max_total_states", "disk_cache_bytes", "image_cache_bytes"),
)
_OWN = ("max_grammars", "max_contexts", "max_answer_tokens", "max_disk_queue_bytes")
_SECONDS = {"request_timeout": "408", "comment_seconds": "-", "stall_seconds": "503"}


def reference() -> str:
    """Return the whole page as Markdown."""
    of_limits = table(("limit", "default", "bounds", "status"), _rows())
    of_engine = table(("option", "default", "bounds"), _engine_rows())
    return f"{INTRODUCTION}\n{of_limits}\n{ENGINE}\n{of_engine}\n"


def _rows() -> Iterator[tuple[str, ...]]:
    told = Docstring.of(Limits).entries
    for field in fields(Limits):
        name = field.name
        status = "-" if name in _OWN else str(LIMIT_ANSWERS.get(name, (400, ""))[0])
        yield f"`{name}`", _value(field.default), told[name], _SECONDS.get(name, status)


def _engine_rows() -> Iterator[tuple[str, ...]]:
    told = Docstring.of(EngineConfig).entries
    for name in _ENGINE:
        default = EngineConfig.__dataclass_fields__[name].default
        yield f"`{name}`", _value(default), told[name]


def _value(default: Any) -> str:
    return "none" if default is None else f"{default:,}"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
