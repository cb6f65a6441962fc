"""Limits of a server: sizes, counts and seconds; some are options of `sgl-mlx serve`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask for, and on how long the server waits.

    Args:
        max_body_bytes: largest size of a request body.
        max_requests: most prompts running and waiting at once; a request that would exceed this
            gets a 503, unless no prompt is running or waiting.
        max_prompts: most prompts in one request.
        max_stops: most stop strings, stop tokens and stop patterns together in one request.
        request_timeout: seconds after which a request is aborted; None for no limit.
        comment_seconds: seconds without data after which a stream sends a comment, so that the
            client does not close the connection.
        stall_seconds: seconds without an answer from the engine after which `/health` gives 503.
    """

    max_body_bytes: int = 64_000_000
    max_requests: int = 512
    max_prompts: int = 1024
    max_stops: int = 256
    request_timeout: float | None = None
    comment_seconds: float = 5.0
    stall_seconds: float = 60.0
