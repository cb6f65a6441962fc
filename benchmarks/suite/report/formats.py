"""Number formats of the suite's reports; None, a missing figure, becomes a dash."""

from __future__ import annotations

NOTHING = "–"


def seconds(value: float | None) -> str:
    """Format seconds without the unit: `0.123`, `1.23`, `12.3` or `123`."""
    if value is None:
        return NOTHING
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def times(value: float | None) -> str:
    """Format a ratio, such as `3.41x`."""
    if value is None:
        return NOTHING
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}x"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as percentage: 0.931 becomes `93.1%`."""
    return NOTHING if value is None else f"{value:.{digits}%}"


def decimal(value: float | None) -> str:
    """Format a number with two digits after the decimal point."""
    return NOTHING if value is None else f"{value:.2f}"


def count(value: float | None) -> str:
    """Format a count with all digits and separators, such as `1,127,034`."""
    return NOTHING if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Format a count with at most three digits, such as `1.13M`, `70.1k` or `501`."""
    if value is None:
        return NOTHING
    for least, unit in ((999_500, "M"), (999.5, "k")):
        if value >= least:
            size = value / {"M": 1e6, "k": 1e3}[unit]
            return f"{size:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}{unit}"
    return f"{value:.0f}"


def readable(text: str) -> str:
    """Replace unprintable characters but `\\n` by U+FFFD; a compared system may output some."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
