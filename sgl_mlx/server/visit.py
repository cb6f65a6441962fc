"""One HTTP request's use of the engine: its part of the prefix cache, and its cache header."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec
from starlette.requests import Request

from sgl_mlx.core import ChoiceScores, Completion, StreamEvent
from sgl_mlx.server.doctor.history import Seen
from sgl_mlx.server.flight import Ask, Completions
from sgl_mlx.server.memory import Answers
from sgl_mlx.server.middleware import CLIENT
from sgl_mlx.server.service import Service


class CacheKeys(msgspec.Struct, kw_only=True):
    """Request fields of vLLM and SGLang that name the part of the prefix cache to use."""

    cache_salt: str | None = None
    extra_key: str | None = None


def cache_name(client: str, keys: CacheKeys) -> str:
    """Return the name of a client's part of the prefix cache; "" for the common part.

    Args:
        client: digest of the client's API key; "" if no key is required.
    """
    named = [client, keys.cache_salt or "", keys.extra_key or ""]
    return msgspec.json.encode(named).decode() if any(named) else ""


class Visit:
    """The prompts of one HTTP request, run in the request's own part of the prefix cache.

    Requests share cached prefixes and remembered answers only if they have the same API key,
    `cache_salt` and `extra_key`.

    Args:
        keys: the fields of the request that name its part of the cache.
    """

    def __init__(self, service: Service, request: Request, keys: CacheKeys | None = None) -> None:
        self.service = service
        self.request = request
        keys = keys or CacheKeys()
        self.keys = CacheKeys(cache_salt=keys.cache_salt, extra_key=keys.extra_key)
        self.client: str = request.scope.get(CLIENT, "")
        self.extra_key = cache_name(self.client, keys)
        self.answers: Answers = service.answers.of(self.extra_key)
        self._seen: list[Seen] = []

    @property
    def cache_header(self) -> str | None:
        """The value of the header `x-sgl-cache`; None if the request ran no prompt."""
        return self.service.history.told(self._seen) if self._seen else None

    async def whole(self, asks: Sequence[Ask]) -> list[Completions]:
        """Run prompts and return their completions; raises the errors of `Flights.whole`."""
        asks = self._own(asks)
        answers = await self.service.flights.whole(asks)
        for seen, answer in zip(self._seen[-len(asks) :], answers, strict=True):
            self._found(seen, answer[0])
        return answers

    async def scores(self, asks: Sequence[Ask]) -> list[ChoiceScores]:
        """Score the choices of each `Ask` after its prompt; raises as `Flights.whole` does."""
        asks = self._own(asks)
        answers = await self.service.flights.scores(asks)
        for seen, answer in zip(self._seen[-len(asks) :], answers, strict=True):
            self._found(seen, answer)
        return answers

    async def stream(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, StreamEvent]]:
        """Run prompts and yield their events; raises the errors of `Flights.stream`."""
        asks = self._own(asks)
        seen, began = self._seen[-len(asks) :], time.monotonic()
        async with aclosing(self.service.flights.stream(asks)) as events:
            async for i, event in events:
                if seen[i].prompt_tokens is None:
                    self._found(seen[i], event, time.monotonic() - began)
                yield i, event

    def _own(self, asks: Sequence[Ask]) -> list[Ask]:
        asks = [replace(ask, extra_key=self.extra_key) for ask in asks]
        self._seen += [
            self.service.history.add(ask.rid, self.extra_key, ask.prompt) for ask in asks
        ]
        return asks

    def _found(
        self, seen: Seen, answer: Completion | StreamEvent | ChoiceScores, seconds: float = 0.0
    ) -> None:
        self.service.history.found(seen, answer.prompt_tokens, answer.cached_tokens, seconds)
