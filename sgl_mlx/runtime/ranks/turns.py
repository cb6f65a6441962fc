"""Turns of the engines that run over the same ranks: one computes a step, the others wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


def settle() -> None:
    """Wait until MLX has finished all that this thread has started."""
    mx.synchronize()
    mx.synchronize(mx.default_stream(mx.cpu))  # where ranks exchange results


class Turns:
    """Turns on rank 0, in the order in which engines ask.

    All ranks have to exchange results in the same order. The other ranks have one thread and take
    steps as they come; on rank 0, where each engine has a thread, a step ends before another
    engine's begins. An engine alone may go on while MLX still computes.

    Attributes:
        shared: True if there are several engines.
        asked: number of turns that were asked for so far.
    """

    def __init__(self) -> None:
        self.shared = False
        self._changed = threading.Condition()
        self.asked = self._current = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for this thread's turn, which lasts as long as the `with` block."""
        with self._changed:
            mine = self.asked
            self.asked += 1
            self._changed.wait_for(lambda: self._current == mine)
        try:
            yield
            if self.shared:
                settle()
        finally:
            with self._changed:
                self._current += 1
                self._changed.notify_all()
