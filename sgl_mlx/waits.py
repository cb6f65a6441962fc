"""Waits for other threads, all of which Ctrl-C ends.

A signal only sets a flag. The main thread looks at it before it waits and when the signal
interrupts the wait. A signal that comes between that look and the wait of the operating system
interrupts nothing, and neither does one that another thread receives: Ctrl-C would do nothing until
the wait is over. So the main thread waits in slices, and looks at the flag after each. Python
handles signals on the main thread alone, so other threads wait without slices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
SLICE = 0.5
"""Seconds after which the main thread looks for a signal."""


def error_of(future: Future[Any]) -> BaseException | None:
    """Wait for a future; return its error, or None if it has a value.

    Raises:
        CancelledError: the future was cancelled.
    """
    while True:
        with suppress(TimeoutError):  # raised for the slice alone: the future's error is returned
            return future.exception(_slice())


def result_of(future: Future[T]) -> T:
    """Wait for a future and return its value; raise its error with the original traceback."""
    error = error_of(future)
    if error is not None:
        raise error
    return future.result()


def wait_until(changed: threading.Condition, ready: Callable[[], object]) -> None:
    """Wait until `ready()` is true, which is looked at again after each notification.

    Args:
        changed: a condition that the caller holds.
    """
    while not changed.wait_for(ready, _slice()):
        pass


def take(queue: SimpleQueue[T]) -> T:
    """Remove and return the next item of a queue; wait until there is one."""
    while True:
        with suppress(Empty):
            return queue.get(timeout=_slice())


def _slice() -> float | None:
    on_main = threading.get_ident() == threading.main_thread().ident
    return SLICE if on_main else None
