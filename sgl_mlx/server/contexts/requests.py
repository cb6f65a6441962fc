"""Bodies of the requests to `/v1/contexts`."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl_mlx.server.contexts.content import Addition, Beginning
from sgl_mlx.server.contexts.store import LIFETIME
from sgl_mlx.server.contexts.work import WorkRequest


class CreateRequest(Beginning, kw_only=True):
    """The body of `POST /v1/contexts`: the beginning of the new context, and how long it lives.

    Attributes:
        tools: tools for a chat; ignored for a text.
        lifetime: seconds without use after which the context expires.
        pinned: True if the context never expires and its prefix is kept in the cache.
        prefill: True computes the context's prefix before the answer is sent; the answer then has
            the prefix's number of tokens.
    """

    tools: list[Any] | None = None
    lifetime: float = LIFETIME
    pinned: bool = False
    prefill: bool = True
    model: str | None = None


class UpdateRequest(msgspec.Struct, kw_only=True):
    """The body of `POST /v1/contexts/ID`: new values for how long the context lives."""

    lifetime: float | None = None
    pinned: bool | None = None


class ForkRequest(msgspec.Struct, kw_only=True):
    """The body of `/fork`: number of copies, and an addition to each copy.

    Attributes:
        n: number of copies; ignored if `extend` is not empty.
        gap: positions that later text skips; for contexts of text only.
        extend: one addition for each copy.
    """

    n: int = 1
    gap: int = 0
    extend: list[Addition] | None = None


class JoinRequest(msgspec.Struct, kw_only=True):
    """The body of `/join`: forks whose additions are appended to the context.

    Attributes:
        contexts: ids of the forks.
        mode: "concatenate" for one after another, or "parallel" for a text's parallel branches.
    """

    contexts: list[str]
    mode: str = "concatenate"


class ChoicesRequest(WorkRequest, kw_only=True):
    """The body of `/score` and `/select`: texts to choose from.

    Attributes:
        choices_method: name of a method in `choosing.METHODS`; for `/select` only.
        unconditional: also score the texts without the context; for `/score` only.
    """

    choices: list[str]
    choices_method: str | None = None
    unconditional: bool = False


class GenerateRequest(WorkRequest, kw_only=True):
    """The body of `/generate` of a context: sampling parameters by the engine's names."""

    sampling_params: dict[str, Any] | None = None
    stream: bool | None = None
