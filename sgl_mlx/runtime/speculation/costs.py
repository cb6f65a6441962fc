"""Table of how long steps take on this machine with this model, to choose draft lengths from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

Curve = tuple[tuple[int, float], ...]
"""Points (size of a step, seconds), by size; at least one."""


@dataclass(frozen=True)
class Costs:
    """Measured seconds of steps.

    Attributes:
        extend: seconds of an `Extend` by its number of tokens.
        decode: seconds of one step of a decode epoch by its number of rows.
    """

    extend: Curve
    decode: Curve

    def of_extend(self, tokens: int) -> float:
        """Return the seconds of an `Extend` of `tokens` tokens, interpolated linearly."""
        return _at(self.extend, tokens)

    def of_decode(self, rows: int) -> float:
        """Return the seconds of a decode step with `rows` rows, interpolated linearly."""
        return _at(self.decode, rows)


def curve(points: Sequence[Sequence[float]]) -> Curve:
    """Sort measured points by size, and lower each time that is above the time of a larger step.

    Other work on the machine only ever makes a step slower, so the lower time is the truer one.

    Args:
        points: pairs (size of a step, seconds), in any order.

    Raises:
        ValueError: there are no points, or a size or time is not positive.
    """
    found: list[tuple[int, float]] = []
    given = sorted(((int(size), float(seconds)) for size, seconds in points), reverse=True)
    for size, seconds in given:
        if size < 1 or not seconds > 0:
            raise ValueError(f"a step of {size} tokens in {seconds} seconds is no measurement")
        found.append((size, min(seconds, found[-1][1]) if found else seconds))
    if not found:
        raise ValueError("no measurement")
    return tuple(reversed(found))


def _at(points: Curve, size: int) -> float:
    """Interpolate linearly between two points.

    Before the first point, the result is the time of the first point. After the last point, the
    line through the first and the last point is continued.
    """
    i = bisect_left(points, (size, 0.0))
    if i == 0:
        return points[0][1]
    if i == len(points):
        last, seconds = points[-1]
        slope = (seconds - points[0][1]) / max(last - points[0][0], 1)
        return seconds + slope * (size - last)
    (left, low), (right, high) = points[i - 1], points[i]
    return low + (high - low) * (size - left) / (right - left)
