"""Waits of the main thread end at Ctrl-C, even if nothing interrupts them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any

import pytest

from sgl_mlx import waits

PATIENCE = 120.0
ERROR = ZeroDivisionError("from afar")


class Awaited:
    """A future, a queue and a condition on which threads wait for the same event."""

    def __init__(self) -> None:
        self.future: Future[int] = Future()
        self.queue: SimpleQueue[int] = SimpleQueue()
        self.changed, self.happened = threading.Condition(), False

    def happen(self) -> None:
        self.future.set_result(5)
        self.queue.put(5)
        with self.changed:
            self.happened = True
            self.changed.notify_all()

    def wait(self) -> None:
        with self.changed:
            waits.wait_until(self.changed, lambda: self.happened)


WAITS: dict[str, tuple[Callable[[Awaited], object], object]] = {
    "error_of": (lambda awaited: waits.error_of(awaited.future), None),
    "result_of": (lambda awaited: waits.result_of(awaited.future), 5),
    "take": (lambda awaited: waits.take(awaited.queue), 5),
    "wait_until": (Awaited.wait, None),
}


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", WAITS)
def test_an_interrupt_that_interrupts_nothing_ends_the_wait(name: str) -> None:
    """Another thread gets the signal, as if it had come just before the main thread's wait."""
    awaited, over = Awaited(), threading.Event()

    def interrupt() -> None:
        over.wait(0.05)  # the main thread is likely to wait then; the outcome is the same if not
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not over.wait(PATIENCE):
            awaited.happen()  # the test fails, and does not hang

    def wait() -> None:
        thread.start()
        WAITS[name][0](awaited)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        wait()
    over.set()
    thread.join()


@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("seconds", [0.0, 0.02], ids=["at once", "after some slices"])
@pytest.mark.parametrize("on_main", [True, False])
def test_a_wait_ends_with_what_it_waits_for(
    name: str, seconds: float, on_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "SLICE", 0.001)
    awaited, found = Awaited(), list[object]()
    wait, wanted = WAITS[name]
    timer = threading.Timer(seconds, awaited.happen)
    timer.start()
    if on_main:
        found.append(wait(awaited))
    else:
        thread = threading.Thread(target=lambda: found.append(wait(awaited)))
        thread.start()
        thread.join()
    assert found == [wanted]
    timer.join()


def settled(by: Callable[[Future[Any]], object]) -> Future[Any]:
    future: Future[Any] = Future()
    by(future)
    return future


def test_a_futures_own_errors_are_told_from_the_end_of_a_slice() -> None:
    for error in (ERROR, TimeoutError("its own")):
        failed = settled(lambda future, error=error: future.set_exception(error))  # type: ignore[misc]
        assert waits.error_of(failed) is error
        with pytest.raises(type(error), match=str(error)):
            waits.result_of(failed)
    cancelled = settled(Future.cancel)
    for wait in (waits.error_of, waits.result_of):
        with pytest.raises(CancelledError):
            wait(cancelled)
