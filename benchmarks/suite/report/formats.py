"""Number formats of the suite's reports; a missing figure is a dash."""

from __future__ import annotations

NOTHING = "–"


def seconds(value: float | None) -> str:
    """Format seconds with three digits or more, without the unit."""
    if value is None:
        return NOTHING
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def times(value: float | None) -> str:
    """Format a ratio: `3.41x`."""
    if value is None:
        return NOTHING
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}x"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share: 0.931 is `93.1%`."""
    return NOTHING if value is None else f"{value:.{digits}%}"


def decimal(value: float | None) -> str:
    """Format with two digits after the point."""
    return NOTHING if value is None else f"{value:.2f}"


def count(value: float | None) -> str:
    """Format a count exactly, with separators: `1,127,034`."""
    return NOTHING if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Format a count with three digits: `1.13M`, `70.1k`, `501`."""
    if value is None:
        return NOTHING
    for least, unit in ((999_500, "M"), (999.5, "k")):
        if value >= least:
            size = value / {"M": 1e6, "k": 1e3}[unit]
            return f"{size:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}{unit}"
    return f"{value:.0f}"


def readable(text: str) -> str:
    """Replace control characters, which a peer's last output may contain; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
