"""Bodies of the requests to `/v1/contexts`."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl_mlx.server.contexts.content import Addition, Beginning
from sgl_mlx.server.contexts.store import LIFETIME
from sgl_mlx.server.contexts.work import WorkRequest


class CreateRequest(Beginning, kw_only=True):
    """The body of `POST /v1/contexts`: what the context begins with.

    Attributes:
        tools: tools for a chat.
        lifetime: seconds without use after which the context expires.
        pinned: never let it expire, and keep its prefix in the cache.
        prefill: compute its prefix now.
    """

    tools: list[Any] | None = None
    lifetime: float = LIFETIME
    pinned: bool = False
    prefill: bool = True
    model: str | None = None


class UpdateRequest(msgspec.Struct, kw_only=True):
    """The body of `POST /v1/contexts/ID`: how long the context lives."""

    lifetime: float | None = None
    pinned: bool | None = None


class ForkRequest(msgspec.Struct, kw_only=True):
    """The body of `/fork`: number of copies, and what each gets at once.

    Attributes:
        gap: positions that later text skips; for contexts of text.
    """

    n: int = 1
    gap: int = 0
    extend: list[Addition] | None = None


class JoinRequest(msgspec.Struct, kw_only=True):
    """The body of `/join`: forks whose additions are appended, one after another or `parallel`."""

    contexts: list[str]
    mode: str = "concatenate"


class ChoicesRequest(WorkRequest, kw_only=True):
    """The body of `/score` and `/select`: texts to choose from."""

    choices: list[str]
    choices_method: str | None = None
    unconditional: bool = False


class GenerateRequest(WorkRequest, kw_only=True):
    """The body of `/generate`: sampling parameters by the engine's names."""

    sampling_params: dict[str, Any] | None = None
    stream: bool | None = None
