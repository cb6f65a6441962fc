"""Factors between how long steps take now and how long they took when they were measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

_LEAST, _MOST = 0.25, 8.0
"""Bounds of one observed factor: an interrupted step says little about the next one."""
_WEIGHT = 0.2
"""Weight of the latest step in a factor."""
_FADING = 0.01
"""Share by which a decode step moves the extend factor towards the decode factor, so that drafting
is tried again some time after it was too slow.
"""


class _Begun(NamedTuple):
    at: float
    rows: frozenset[str]
    seconds: float
    extends: bool = False


class Pace:
    """Observed speed of an engine's steps, relative to the table of costs.

    Costs are measured after a short prefix on an engine that does nothing else. Longer prefixes
    make extend steps of several rows slower than decode steps, and other work slows both. A step's
    time counts from `begin` to the next `observe`.

    Attributes:
        extend: factor for the seconds of an `Extend`.
        decode: factor for the seconds of a decode step.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.extend = self.decode = 1.0
        self._clock = clock
        self._begun: _Begun | None = None
        self._leaving = 0.0
        self._opens = True

    def begin(self, rows: frozenset[str], seconds: float) -> None:
        """Note that a step begins, which is a decode step unless `extends` is called.

        Args:
            rows: ids of the sequences that run.
            seconds: seconds of a decode step by the table of costs.
        """
        self._begun = _Begun(self._clock(), rows, seconds)

    def extends(self, seconds: float | None) -> None:
        """Note that the step is an `Extend`.

        Args:
            seconds: seconds of the step by the table of costs; None if the step shall not be
                observed.
        """
        if seconds is None:
            self._begun = None
        elif self._begun is not None:
            self._begun = self._begun._replace(seconds=seconds, extends=True)

    def observe(self, rows: frozenset[str]) -> None:
        """Record the time of the step that began last, if no sequence came or went since then.

        Args:
            rows: ids of the sequences that run now.
        """
        begun, self._begun = self._begun, None
        if begun is None or begun.rows != rows:
            self._opens = True
            return
        elapsed = self._clock() - begun.at
        if begun.extends:
            self._observe_extend(elapsed, begun.seconds)
        else:
            self._observe_decode(elapsed, begun.seconds)
        self._opens = begun.extends

    def _observe_extend(self, elapsed: float, seconds: float) -> None:
        """Update the factor of extend steps.

        The extra time of opening the epoch that this step ended is added to the step's time.
        """
        self.extend += _WEIGHT * (_bounded((elapsed + self._leaving) / seconds) - self.extend)
        self._leaving = 0.0

    def _observe_decode(self, elapsed: float, seconds: float) -> None:
        """Update the factor of decode steps; skip an epoch's first step, which copies prefixes."""
        if self._opens:
            self._leaving = max(elapsed - self.decode * seconds, 0.0)
            return
        self.decode += _WEIGHT * (_bounded(elapsed / seconds) - self.decode)
        self.extend += _FADING * (self.decode - self.extend)


def _bounded(factor: float) -> float:
    return min(max(factor, _LEAST), _MOST)
