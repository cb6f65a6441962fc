"""Calls on a thread with a large stack, for native code that recurses as deeply as its input."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_BYTES = 512 << 20
"""Size of the stack; memory is taken only for the part that is used."""

_lock = threading.Lock()


def on_deep_stack(function: Callable[[], T]) -> T:
    """Call a function on a new thread with a large stack; return its result or raise its error.

    llguidance recurses through rules that name each other. A chain of 3,000 references overflows
    the usual stack of 8 MB, which ends the process.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    with _lock:  # the size holds for all threads that start meanwhile
        before = threading.stack_size(_BYTES)
        try:
            thread = threading.Thread(target=run, name="sgl-mlx grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return done.result()
