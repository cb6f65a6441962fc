"""A thread that looks at another thread's pulse, and tells when its work hangs or it has died."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from sgl_mlx.runtime.watchdog.pulse import Pulse, Work

_LOOKS = 10
"""How often the watchdog looks within its limit."""
_LONGEST_TICK = 1.0
"""Most seconds between two looks."""


class Watchdog:
    """A watchdog over one thread.

    Time counts only while this thread runs too: after the process was stopped, or the machine
    slept, no work counts as hung for that. On a machine with more work than processors it counts
    for as much less (see `crowding`).

    Args:
        pulse: the work of the thread.
        alive: returns False once the thread has died.
        seconds: limit for usual work; see `Pulse.limit`.
        on_failure: called on the watchdog's thread with the reason, once for each failure.
        on_recovery: called on the watchdog's thread when work that counted as hung has ended.
        on_tick: called on the watchdog's thread each second or more often.
    """

    def __init__(
        self,
        pulse: Pulse,
        alive: Callable[[], bool],
        seconds: float,
        on_failure: Callable[[str], None],
        on_recovery: Callable[[], None],
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._pulse = pulse
        self._alive = alive
        self._seconds = seconds
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._on_tick = on_tick
        self._tick = min(seconds / _LOOKS, _LONGEST_TICK)
        self._stopped = threading.Event()
        self._work: Work | None = None
        self._worked = self._passed = 0.0
        self._hung = False
        self._thread = threading.Thread(target=self._watch, name="sgl-mlx watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns at once if it was not started or runs this."""
        self._stopped.set()
        if self._thread.ident not in (None, threading.get_ident()):
            self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._tick):
            now = time.monotonic()
            self.look(min(now - before, 2 * self._tick), crowding())
            before = now
            self._on_tick()
            if not self._alive():
                self._on_failure("the engine's thread died")
                return

    def look(self, seconds: float, crowding: float = 1.0) -> None:
        """Look at the pulse, `seconds` after the last look, on a machine as crowded as this."""
        self._pulse.learn()
        work = self._pulse.work
        if work is None or work is not self._work:
            self._work, self._worked, self._passed = work, 0.0, 0.0
            if self._hung:
                self._hung = False
                self._on_recovery()
            return
        self._passed += seconds
        self._worked += seconds / crowding
        if not self._hung and self._worked >= self._pulse.limit(work, self._seconds):
            self._hung = True
            self._on_failure(
                f"the engine hangs: its {work.name} has not ended in {self._passed:.0f} seconds; "
                "the engine takes requests again once that has ended"
            )


def crowding() -> float:
    """Return how many threads of this machine want each of its processors; 1 if there are enough.

    The system's average over the last minute. A step then takes as much longer than alone.
    """
    return max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
