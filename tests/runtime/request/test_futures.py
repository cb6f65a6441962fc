"""Futures of futures, and iterators over a request's text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import pytest

from sgl_mlx.core import StreamEvent
from sgl_mlx.errors import RequestAborted
from sgl_mlx.runtime.request.futures import gather, iterate, iterate_async, then
from sgl_mlx.runtime.request.request import wait_all, wait_all_async


def done(value: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(value)
    return future


def test_gather_waits_for_all_and_keeps_their_order() -> None:
    sources: list[Future[int]] = [Future(), Future(), done(3)]
    target = gather(sources, lambda results: results)
    sources[1].set_result(2)
    assert not target.done()
    sources[0].set_result(1)
    assert target.result(0) == [1, 2, 3]


def test_gather_fails_with_the_first_failure_and_cancels_the_rest() -> None:
    sources: list[Future[int]] = [Future(), Future(), Future()]
    target = gather(sources, sum)
    sources[1].set_exception(ZeroDivisionError("first"))
    with pytest.raises(ZeroDivisionError, match="first"):
        target.result(0)
    assert sources[0].cancelled()
    assert sources[2].cancelled()


def test_gather_fails_when_a_source_is_cancelled() -> None:
    sources: list[Future[int]] = [Future(), Future()]
    target = gather(sources, sum)
    sources[0].cancel()
    with pytest.raises(CancelledError):
        target.result(0)
    assert sources[1].cancelled()


def test_gather_fails_with_what_its_function_raises() -> None:
    def fail(results: list[int]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gather([done(1)], fail).result(0)


def test_cancelling_a_gathered_future_cancels_its_sources() -> None:
    sources: list[Future[int]] = [Future(), Future()]
    assert gather(sources, sum).cancel()
    assert all(source.cancelled() for source in sources)


def test_then_is_the_function_of_the_result() -> None:
    assert then(done(20), lambda n: n + 1).result(0) == 21


def test_waiting_for_all_cancels_the_others_on_a_failure() -> None:
    failed: Future[int] = Future()
    failed.set_exception(ZeroDivisionError())
    pending: Future[int] = Future()
    with pytest.raises(ZeroDivisionError):
        wait_all([failed, pending])
    assert pending.cancelled()


def event(text: str) -> StreamEvent:
    return StreamEvent(0, text)


class Started:
    """A request under way, whose events are `put` by the test."""

    def __init__(self, *pieces: str, result: int | None = None) -> None:
        self.future: Future[int] = Future()
        self._pieces, self._result = pieces, result

    def __call__(self, put: Callable[[StreamEvent], None]) -> Future[int]:
        for piece in self._pieces:
            put(event(piece))
        if self._result is not None:
            self.future.set_result(self._result)
        return self.future


async def collect(start: Started) -> list[StreamEvent]:
    return [item async for item in iterate_async(start)]


def test_iterating_gives_the_events_until_the_request_is_done() -> None:
    assert list(iterate(Started("a", "b", result=5))) == [event("a"), event("b")]
    assert asyncio.run(collect(Started("a", "b", result=5))) == [event("a"), event("b")]


def test_an_event_without_text_does_not_end_the_iteration() -> None:
    assert list(iterate(Started("", "b", result=5))) == [event(""), event("b")]


def test_waiting_for_all_in_a_task_that_is_cancelled_cancels_them() -> None:
    futures: list[Future[int]] = [Future(), done(3), Future()]

    async def wait() -> None:
        await asyncio.wait_for(wait_all_async(futures), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    assert [future.cancelled() for future in futures] == [True, False, True]


def test_waiting_for_all_in_a_task_cancels_the_others_on_a_failure() -> None:
    pending, failed = Future[int](), Future[int]()
    failed.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        asyncio.run(wait_all_async([pending, failed]))  # type: ignore[arg-type]
    assert pending.cancelled()


def test_closing_the_iterator_cancels_the_request() -> None:
    start = Started("a")
    pieces = iterate(start)
    assert next(pieces) == event("a")
    pieces.close()  # type: ignore[attr-defined]
    assert start.future.cancelled()


def test_leaving_an_asynchronous_iteration_cancels_the_request() -> None:
    start = Started("a")

    async def leave() -> None:
        pieces = iterate_async(start)
        assert await anext(pieces) == event("a")
        await pieces.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert start.future.cancelled()


def test_a_failure_comes_after_the_pieces_before_it() -> None:
    start = Started("a")
    pieces = iterate(start)
    assert next(pieces) == event("a")
    start.future.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        next(pieces)


def test_a_request_cancelled_by_another_ends_the_iteration_with_an_error() -> None:
    start = Started("a")
    pieces = iterate(start)
    assert next(pieces) == event("a")
    start.future.cancel()
    with pytest.raises(RequestAborted, match="cancelled"):
        next(pieces)
