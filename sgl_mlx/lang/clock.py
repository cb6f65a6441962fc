"""Deadlines: one thread calls functions when their time comes, and ends when none is left."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.errors import InvalidParamsError


@dataclass(order=True, slots=True)
class Alarm:
    """A call that is due at a time of `time.monotonic()`; `ring` is None once cancelled."""

    due: float
    ring: Callable[[], object] | None = field(compare=False)

    def cancel(self) -> None:
        """Do not ring; safe to call twice."""
        self.ring = None


class Clock:
    """Rings alarms on a thread that lives while any is set."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alarms: list[Alarm] = []
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, ring: Callable[[], object]) -> Alarm:
        """Call `ring` after so many seconds, unless the alarm is cancelled before."""
        alarm = Alarm(time.monotonic() + seconds, ring)
        with self._changed:
            self._drop_cancelled()
            heapq.heappush(self._alarms, alarm)
            # A thread that a fork did not bring along is not alive.
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
"""The clock of all programs; it has no state but the alarms that are set."""


def checked_seconds(name: str, value: Any) -> float | None:
    """Return a timeout as a number of seconds; None stays None.

    Raises:
        InvalidParamsError: for anything but a finite number above 0.
    """
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and value > 0):
        raise InvalidParamsError(f"{name} must be a number of seconds above 0, got {value!r}")
    return min(float(value), threading.TIMEOUT_MAX)
