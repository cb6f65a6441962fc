"""Output of commands: streamed text, JSON documents, and a one-line summary of the counters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import click

from sgl_mlx import bounds
from sgl_mlx.core import Completion, Prompt, SamplingParams, StreamEvent
from sgl_mlx.lang.backend import Backend
from sgl_mlx.waits import result_of, take

_DEEPEST = 100


def complete(
    backend: Backend, prompt: Prompt, params: SamplingParams, show: Callable[[str], None]
) -> Completion:
    """Generate one completion of a prompt; `show` gets each piece of text as it is generated.

    `show` runs on the calling thread. If `show` raises an error, or on Ctrl-C, the request is
    aborted. If the request itself fails, its error is raised after the last piece.
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()

    def collect(event: StreamEvent) -> None:
        if event.text and event.sample == 0:
            pieces.put(event.text)

    future = backend.submit(prompt, params, collect)
    future.add_done_callback(lambda _: pieces.put(None))
    try:
        for piece in iter(lambda: take(pieces), None):
            show(piece)
    except BaseException:
        future.cancel()
        raise
    return result_of(future)[0]


def write(text: str, err: bool = False) -> None:
    """Print text without a line end; to standard error if `err`."""
    click.echo(text, nl=False, err=err)


def print_json(
    text: str, variables: Mapping[str, Any], stats: Mapping[str, Any], **more: Any
) -> None:
    """Print the JSON document of `--json`; see `print_document`."""
    print_document({"text": text, "variables": variables, "stats": stats, **more})


def print_document(document: Any) -> None:
    """Print a value as JSON; in ASCII if the output's encoding lacks one of its characters.

    Numbers and arrays of numpy become JSON's; values and keys that JSON cannot hold become text.
    """
    document = _plain(document)
    text = json.dumps(document, ensure_ascii=False, indent=2)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        text = json.dumps(document, indent=2)
    click.echo(text)


def _plain(value: Any, depth: int = 0) -> Any:
    """Convert a value to types of JSON; values nested deeper than `_DEEPEST` become text."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if type(value).__name__.startswith("bool"):  # numpy's
        return bool(value)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {str(key): _plain(part, depth + 1) for key, part in value.items()}
    items = bounds.listed(value) if depth < _DEEPEST else None
    if items is not None and not isinstance(value, (set, frozenset)):
        return [_plain(part, depth + 1) for part in items]
    found = (bounds.whole(value), bounds.real(value))
    return next((number for number in found if number is not None), str(value))


def stats_of(backend: Backend) -> dict[str, Any]:
    """Return a backend's stats from `get_server_info`; empty if it has none."""
    return dict(backend.get_server_info().get("stats", {}))


def summary(stats: Mapping[str, Any]) -> str:
    """Return a line of token counts; empty if no prompt was computed.

    Example: `142 prompt tokens, 97 of them cached; 30 generated in 12 forward passes`.
    """
    if not stats.get("prompt_tokens"):
        return ""
    return (
        f"{stats['prompt_tokens']} prompt tokens, {stats['cached_tokens']} of them cached; "
        f"{stats['decode_tokens']} generated in {stats['forward_passes']} forward passes"
    )
