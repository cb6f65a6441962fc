"""Alternating measurements of two systems, so that a busy machine slows both alike.

The ratio is taken pair by pair; its median is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Measure = Callable[[], float]
"""Do the work once and return its speed; larger is better."""


@dataclass(frozen=True)
class Pair:
    """Speeds of the same work by both systems, run after run."""

    name: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    bar: float

    @property
    def ratio(self) -> float:
        """The median of ours over theirs, pair by pair."""
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
    """Measure `repeats` alternating pairs after one unmeasured pair to warm up."""
    ours(), theirs()
    speeds = [(ours(), theirs()) for _ in range(repeats)]
    return Pair(name, unit, tuple(a for a, _ in speeds), tuple(b for _, b in speeds), bar)
