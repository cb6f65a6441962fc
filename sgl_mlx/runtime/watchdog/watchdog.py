"""A thread that looks at another thread's pulse, and tells when its work hangs or it has died."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from sgl_mlx.runtime.watchdog.pulse import Pulse, Work

_LOOKS = 10
"""Number of times that the watchdog looks at the pulse within its limit."""
_LONGEST_TICK = 1.0
"""Most seconds between two looks."""


class Watchdog:
    """A watchdog over one thread.

    Time counts only while the watchdog's thread runs too. So no work counts as hung because the
    process was stopped or the machine slept. On a machine with more work than processors, time
    counts less (see `crowding`).

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
        """End the thread and wait for it, unless it was never started or is the calling thread."""
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
        """Look at the pulse, and report work that hangs or has ended.

        Args:
            seconds: time since the last look.
            crowding: result of `crowding`; time counts that many times less.
        """
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
    """Return how many threads compete for each processor of this machine, at least 1.

    The number is an average over the last minute. A step takes about this many times as long as on
    an idle machine.
    """
    return max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
