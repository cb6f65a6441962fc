"""Pinned contexts: their prefixes are prefilled again and again, so that they stay cached."""

from __future__ import annotations

import asyncio
import logging

from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.server.contexts.store import Context, Contexts
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.service import Service, in_thread, new_id
from sgl_mlx.server.visit import cache_name

log = logging.getLogger("sgl_mlx.server")

_PRIORITY = -1_000_000
SECONDS = 20.0
"""Pause in seconds between two rounds over the pinned contexts."""


class Pins:
    """A background task that keeps the prefixes of pinned contexts in the cache.

    Every `seconds` seconds the task prefills each prefix, at a very low priority. A prefix that is
    still cached costs no computation; an evicted prefix is computed anew.
    """

    def __init__(self, service: Service, contexts: Contexts, seconds: float = SECONDS) -> None:
        self._service = service
        self._contexts = contexts
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Start the task if a context is pinned; the task ends itself when no context is pinned."""
        if self._contexts.pinned() and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._rounds())

    async def _rounds(self) -> None:
        while pinned := self._contexts.pinned():
            await asyncio.sleep(self._seconds)
            for context in pinned:
                try:
                    await self._touch(context)
                except EngineStoppedError:
                    return
                except Exception as error:
                    log.warning("context %s was not kept in the cache: %s", context.id, error)

    async def _touch(self, context: Context) -> None:
        service, params = self._service, SamplingParams(max_new_tokens=0)
        name = cache_name(context.client, context.keys)
        tokenizer, answers = service.engine.tokenizer, service.answers.of(name)
        turn = await in_thread(context.content.turn, tokenizer, params, answers)
        ask = Ask(turn.prompt, params, new_id("pin-"), _PRIORITY, name)
        await service.flights.whole([ask])
