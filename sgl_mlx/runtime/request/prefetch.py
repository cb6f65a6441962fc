"""Prefetches: prompts computed, or restored to the cache, before a request needs them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.encode import Encoded
from sgl_mlx.runtime.request.futures import gather
from sgl_mlx.runtime.request.output import Silent

_SILENT = SamplingParams(max_new_tokens=0)


def prefetch(prompt: Encoded, loop: EngineLoop) -> Future[int]:
    """Prefetch a prompt; return a future of how many of its tokens are then cached.

    The future never fails; cancelling it aborts the prefetch. If `Shift` or `Parallel` parts cut
    the prompt, only what comes before the first cut is prefetched. Before a `Parallel` this is
    each branch with everything before the branches; the result is the largest number among them.
    """
    return gather([_Prefetch(part, loop).future for part in _plain(prompt)], max)


def nothing() -> Future[int]:
    """Return a finished future of 0, for a prompt that cannot be prefetched."""
    future: Future[int] = Future()
    future.set_result(0)
    return future


class _Prefetch(Silent):
    """The prefetch of a prompt with an empty `after`, and also its sequence's output."""

    def __init__(self, prompt: Encoded, loop: EngineLoop) -> None:
        self.future: Future[int] = Future()
        self._loop = loop
        self._sequence = prompt.sequence(uuid.uuid4().hex, self, _SILENT)
        self._sequence.background = True
        self.future.add_done_callback(self._abort_if_cancelled)
        try:
            loop.post(partial(loop.add, [self._sequence]))
        except EngineStoppedError:
            self._resolve(0)

    def finish(self, reason: FinishReason) -> None:
        """Settle the future with the number of cached tokens, whatever `reason` is."""
        self._loop.deliver(partial(self._resolve, self._loop.resident(self._sequence)), self)

    def _resolve(self, tokens: int) -> None:
        with suppress(InvalidStateError):  # cancelled
            self.future.set_result(tokens)

    def _abort_if_cancelled(self, future: Future[int]) -> None:
        if future.cancelled():
            with suppress(EngineStoppedError):
                self._loop.post(partial(self._loop.abort, [self._sequence], "cancelled"))


def _plain(prompt: Encoded) -> Iterator[Encoded]:
    """Yield the prompt itself if its `after` is empty, else the innermost prompts in `after`."""
    if not prompt.after:
        yield prompt
    for branch in prompt.after:
        yield from _plain(branch)
