"""The contexts of a server: who owns them, and how long they live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sgl_mlx.bounds import shown
from sgl_mlx.limits import Limits
from sgl_mlx.server.contexts.content import Content
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.service import new_id
from sgl_mlx.server.visit import CacheKeys

LIFETIME = 3600.0


@dataclass(eq=False)
class Context:
    """A context: its content, its owner, and how long it lives.

    Attributes:
        client: digest of the owner's API key; "" if the server needs no key.
        keys: fields that name the part of the prefix cache for the context's requests.
        lifetime: seconds without use after which the context expires.
        pinned: True if the context never expires and its prefix is kept in the cache.
        used: time of the last use on the monotonic clock.
        deleted: True once the owner has deleted the context.
    """

    client: str
    keys: CacheKeys
    content: Content
    lifetime: float = LIFETIME
    pinned: bool = False
    id: str = field(default_factory=lambda: new_id("ctx_"))
    used: float = field(default_factory=time.monotonic)
    deleted: bool = False

    @property
    def left(self) -> float | None:
        """Seconds until the context expires; None if it is pinned."""
        return None if self.pinned else self.used + self.lifetime - time.monotonic()


class Contexts:
    """All contexts of a server, at most `most` of them.

    When there are too many, the least recently used contexts that are not pinned are dropped.
    """

    def __init__(self, most: int = Limits().max_contexts) -> None:
        self._most = most
        self._contexts: dict[str, Context] = {}

    def add(self, context: Context) -> Context:
        """Store a context and return it.

        Raises:
            HttpError: 400 if the store is full of pinned contexts.
        """
        self._expire()
        while len(self._contexts) >= self._most:
            old = next((c for c in self._contexts.values() if not c.pinned), None)
            if old is None:
                raise HttpError(
                    400,
                    f"{self._most} contexts are pinned, as many as max_contexts allows; unpin some",
                    "full",
                )
            del self._contexts[old.id]
        self._contexts[context.id] = context
        return context

    def get(self, id: str, client: str) -> Context:
        """Return a client's context, and note that it was used.

        Raises:
            HttpError: 404 if the client has no such context, or it has expired.
        """
        self._expire()
        context = self._contexts.get(id)
        if context is None or context.client != client:
            message = f"there is no context {shown(id)}; it may have expired"
            raise HttpError(404, message, "context_not_found")
        context.used = time.monotonic()
        self._contexts[id] = self._contexts.pop(id)  # the last is the most recently used
        return context

    def drop(self, id: str, client: str) -> None:
        """Remove a client's context; raises the errors of `get`."""
        context = self.get(id, client)
        context.deleted = True
        del self._contexts[id]

    def of(self, client: str) -> Iterator[Context]:
        """Yield a client's contexts, the least recently used first."""
        self._expire()
        yield from [c for c in self._contexts.values() if c.client == client]

    def pinned(self) -> list[Context]:
        return [context for context in self._contexts.values() if context.pinned]

    def _expire(self) -> None:
        gone = [c.id for c in self._contexts.values() if c.left is not None and c.left <= 0]
        for id in gone:
            del self._contexts[id]
