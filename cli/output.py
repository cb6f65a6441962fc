"""Output of commands: streamed text, one JSON document at the end, a line of counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import click

from sgl_mlx.core import Completion, Prompt, SamplingParams, StreamEvent
from sgl_mlx.lang.backend import Backend


def complete(
    backend: Backend, prompt: Prompt, params: SamplingParams, show: Callable[[str], None]
) -> Completion:
    """Continue a prompt, showing each piece of text on the calling thread as it comes.

    When the caller is interrupted, or showing fails, the request is aborted.
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()

    def take(event: StreamEvent) -> None:
        if event.text and event.sample == 0:
            pieces.put(event.text)

    future = backend.submit(prompt, params, take)
    future.add_done_callback(lambda _: pieces.put(None))
    try:
        for piece in iter(pieces.get, None):
            show(piece)
    except BaseException:
        future.cancel()
        raise
    return future.result()[0]


def write(text: str, err: bool = False) -> None:
    """Print part of a line at once."""
    click.echo(text, nl=False, err=err)


def print_json(
    text: str, variables: Mapping[str, Any], stats: Mapping[str, Any], **more: Any
) -> None:
    """Print the document of `--json`; values that JSON cannot hold become their `str`."""
    print_document({"text": text, "variables": variables, "stats": stats, **more})


def print_document(document: Any) -> None:
    """Print JSON, in ASCII if the output's encoding lacks one of its characters."""
    text = json.dumps(document, ensure_ascii=False, indent=2, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        text = json.dumps(document, indent=2, default=str)
    click.echo(text)


def stats_of(backend: Backend) -> dict[str, Any]:
    """Return the counters of a backend; empty if it has none."""
    return dict(backend.get_server_info().get("stats", {}))


def summary(stats: Mapping[str, Any]) -> str:
    """Return `142 prompt tokens, 97 of them cached; 30 generated in 12 …`, or nothing."""
    if not stats.get("prompt_tokens"):
        return ""
    return (
        f"{stats['prompt_tokens']} prompt tokens, {stats['cached_tokens']} of them cached; "
        f"{stats['decode_tokens']} generated in {stats['forward_passes']} forward passes"
    )
