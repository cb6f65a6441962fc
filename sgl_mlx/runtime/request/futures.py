"""Small things around `concurrent.futures` that the engine's callers need."""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import TypeVar

from sgl_mlx.errors import RequestAborted

S = TypeVar("S")
T = TypeVar("T")
Start = Callable[[Callable[[str], None]], "Future[T]"]
"""Starts a request, given where its text goes."""


def then(source: Future[S], function: Callable[[S], T]) -> Future[T]:
    """The future of `function(result)`; cancelling it cancels the source."""
    return gather([source], lambda results: function(results[0]))


def gather(sources: Sequence[Future[S]], function: Callable[[list[S]], T]) -> Future[T]:
    """The future of `function(results)`; fails with the first failure, cancelling the rest."""
    target: Future[T] = Future()
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


def wait_all(futures: Sequence[Future[T]]) -> list[T]:
    """All results; on a failure or an interrupt the others are cancelled."""
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def iterate(start: Start[T]) -> Iterator[str | T]:
    """Pieces of text as they come, then the result. Closing the iterator cancels the request."""
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    future = start(pieces.put)
    future.add_done_callback(lambda _: pieces.put(None))
    try:
        while (piece := pieces.get()) is not None:
            yield piece
        yield _result(future)
    finally:
        future.cancel()


async def iterate_async(start: Start[T]) -> AsyncIterator[str | T]:
    """`iterate` for asyncio."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def put(piece: str | None) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    future = start(put)
    future.add_done_callback(lambda _: put(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield _result(future)
    finally:
        future.cancel()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise RequestAborted("the request was cancelled") from None
