"""Combinations of `concurrent.futures`, and iterators over a request's events."""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import TypeVar

from sgl_mlx.core import StreamEvent
from sgl_mlx.errors import RequestAborted

S = TypeVar("S")
T = TypeVar("T")
Start = Callable[[Callable[[StreamEvent], None]], "Future[T]"]
"""Starts a request, given where its events go."""


def then(
    source: Future[S], function: Callable[[S], T], target: Future[T] | None = None
) -> Future[T]:
    """Return the future of `function(result)`; cancelling it cancels the source.

    Args:
        target: the future to settle; otherwise a new one is made.
    """
    return gather([source], lambda results: function(results[0]), target)


def gather(
    sources: Sequence[Future[S]],
    function: Callable[[list[S]], T],
    target: Future[T] | None = None,
) -> Future[T]:
    """Return the future of `function(results)`, as `then`.

    It fails with the first failure, cancelling the rest.
    """
    target = Future() if target is None else target
    unfinished = itertools.count(len(sources) - 1, -1)

    def finished(source: Future[S]) -> None:
        try:
            source.result()
            if next(unfinished):
                return
            settle = partial(target.set_result, function([s.result() for s in sources]))
        except (Exception, CancelledError) as error:
            settle = partial(target.set_exception, error)
        with suppress(InvalidStateError):  # the target was settled before
            settle()

    def cancel_the_rest(_: Future[T]) -> None:
        for source in sources:
            source.cancel()

    target.add_done_callback(cancel_the_rest)
    for source in sources:
        source.add_done_callback(finished)
    return target


def iterate(start: Start[T]) -> Iterator[StreamEvent]:
    """Yield events as they come. Closing the iterator cancels the request.

    Raises:
        RequestAborted: the request was cancelled; or whatever else it failed with.
    """
    events: queue.SimpleQueue[StreamEvent | None] = queue.SimpleQueue()
    future = start(events.put)
    future.add_done_callback(lambda _: events.put(None))
    try:
        while (event := events.get()) is not None:
            yield event
        _raise_failure(future)
    finally:
        future.cancel()


async def iterate_async(start: Start[T]) -> AsyncIterator[StreamEvent]:
    """Yield events as `iterate`, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()

    def put(event: StreamEvent | None) -> None:
        with suppress(RuntimeError):  # the event loop was closed; nobody listens
            loop.call_soon_threadsafe(events.put_nowait, event)

    future = start(put)
    future.add_done_callback(lambda _: put(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        _raise_failure(future)
    finally:
        future.cancel()


def _raise_failure(future: Future[T]) -> None:
    try:
        future.result()
    except CancelledError:
        raise RequestAborted("the request was cancelled") from None
