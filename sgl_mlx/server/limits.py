"""Limits of a server: sizes, counts and seconds, each an option of `sgl-mlx serve`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask for.

    Args:
        max_body_bytes: largest body of a request.
        max_requests: prompts under way at once, running and waiting; more are answered with 503.
        max_prompts: prompts of one request.
        max_stops: stop strings, tokens and patterns of one request.
        request_timeout: seconds after which a request is aborted; None for no limit.
        comment_seconds: pause after which a stream sends a comment, so that nobody hangs up.
        stall_seconds: silence of the engine after which `/health` answers 503.
    """

    max_body_bytes: int = 64_000_000
    max_requests: int = 512
    max_prompts: int = 1024
    max_stops: int = 256
    request_timeout: float | None = None
    comment_seconds: float = 5.0
    stall_seconds: float = 60.0
