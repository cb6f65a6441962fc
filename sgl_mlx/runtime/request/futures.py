"""Combinators of futures, and iterators over a request's stream events."""

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
from sgl_mlx.waits import take

S = TypeVar("S")
T = TypeVar("T")
Start = Callable[[Callable[[StreamEvent], None]], "Future[T]"]
"""A function that starts a request and returns its future.

The function's argument is a callback, which the request calls with each of its stream events.
"""


def then(
    source: Future[S], function: Callable[[S], T], target: Future[T] | None = None
) -> Future[T]:
    """Return a future of `function(result of source)`; cancelling the new one cancels `source`.

    If `source` or `function` fails, the future fails with the same error.

    Args:
        target: the future to settle and return; None makes a new one.
    """
    return gather([source], lambda results: function(results[0]), target)


def gather(
    sources: Sequence[Future[S]],
    function: Callable[[list[S]], T],
    target: Future[T] | None = None,
) -> Future[T]:
    """Return a future of `function(list of all results)`.

    Cancelling the returned future cancels all sources. When a source or `function` fails, the
    future fails with the same error, and the sources that still run are cancelled.

    Args:
        sources: the futures to wait for, at least one.
        target: the future to settle and return; None makes a new one.
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
    """Start a request and yield its events as they come.

    The request starts when the first event is asked for; closing the iterator cancels it.

    Raises:
        RequestAborted: the request was cancelled.
        Exception: the error with which the request failed.
    """
    events: queue.SimpleQueue[StreamEvent | None] = queue.SimpleQueue()
    future = start(events.put)
    future.add_done_callback(lambda _: events.put(None))
    try:
        while (event := take(events)) is not None:
            yield event
        _raise_failure(future)
    finally:
        future.cancel()


async def iterate_async(start: Start[T]) -> AsyncIterator[StreamEvent]:
    """Yield a request's events as `iterate` does, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()

    def put(event: StreamEvent | None) -> None:
        with suppress(RuntimeError):  # the event loop was closed
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
