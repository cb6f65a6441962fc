"""Timers for timeouts: one thread calls functions when they are due."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx import bounds


@dataclass(order=True, slots=True)
class Alarm:
    """A function `ring` to call when `time.monotonic()` reaches `due`; None after `cancel`."""

    due: float
    ring: Callable[[], object] | None = field(compare=False)

    def cancel(self) -> None:
        """Cancel the call. A second `cancel` has no effect."""
        self.ring = None


class Clock:
    """A set of alarms, and a thread that rings them; the thread ends when no alarm is left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alarms: list[Alarm] = []
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, ring: Callable[[], object]) -> Alarm:
        """Call `ring` on the clock's thread after some time; return the alarm, to cancel it."""
        alarm = Alarm(time.monotonic() + seconds, ring)
        with self._changed:
            self._drop_cancelled()
            heapq.heappush(self._alarms, alarm)
            # After os.fork() the thread object exists, but its thread does not run.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sgl-mlx clock", daemon=True)
                self._thread.start()
            self._changed.notify()
        return alarm

    def _run(self) -> None:
        while (alarm := self._next()) is not None:
            ring = alarm.ring
            if ring is not None:
                ring()

    def _next(self) -> Alarm | None:
        with self._changed:
            while True:
                self._drop_cancelled()
                if not self._alarms:
                    self._thread = None
                    return None
                left = self._alarms[0].due - time.monotonic()
                if left <= 0:
                    return heapq.heappop(self._alarms)
                self._changed.wait(left)

    def _drop_cancelled(self) -> None:
        while self._alarms and self._alarms[0].ring is None:
            heapq.heappop(self._alarms)


clock = Clock()
"""The clock that all programs share."""


def checked_seconds(name: str, value: Any) -> float | None:
    """Return a timeout in seconds as a float, at most `threading.TIMEOUT_MAX`; None stays None.

    `name` names the timeout in the error.

    Raises:
        InvalidParamsError: for anything but a positive number.
    """
    return None if value is None else min(bounds.seconds(name, value), threading.TIMEOUT_MAX)
