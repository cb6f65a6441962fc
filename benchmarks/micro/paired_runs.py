"""Alternating measurements of two systems, so that other load slows both alike.

The reported ratio is the median of the ratios of all pairs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Measure = Callable[[], float]
"""Function that does the work once and returns the speed; larger is better."""


@dataclass(frozen=True)
class Pair:
    """Speeds of two systems at the same work, in alternating runs.

    Attributes:
        ours, theirs: speed of each run, in `unit`.
        bar: least ratio that is required.
        holds: True if the ratio reaches the bar.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    bar: float

    @property
    def ratio(self) -> float:
        """Median of our speed over theirs, pair by pair."""
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def holds(self) -> bool:
        return self.ratio >= self.bar

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": [round(x, 3) for x in self.ours],
            "theirs": [round(x, 3) for x in self.theirs],
            "ratio": round(self.ratio, 3),
            "bar": self.bar,
            "holds": self.holds,
        }


def measure_pairs(
    name: str, unit: str, bar: float, ours: Measure, theirs: Measure, repeats: int
) -> Pair:
    """Measure `repeats` alternating pairs, after one pair to warm up that does not count."""
    ours(), theirs()
    speeds = [(ours(), theirs()) for _ in range(repeats)]
    return Pair(name, unit, tuple(a for a, _ in speeds), tuple(b for _, b in speeds), bar)
