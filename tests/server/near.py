"""Comparison of answers whose logprobs may differ by rounding: batches differ between requests."""

from __future__ import annotations

from typing import Any


def near(one: Any, other: Any, most: float = 1e-4) -> bool:
    """True if two JSON values are equal but for floats, which differ by at most `most`."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(near(one[k], other[k], most) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            near(a, b, most) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= most
    return bool(one == other)
