"""Positions in the report's plots, in percent of the width, so that plots fit any page.

Templates draw the plots as SVG, with a strip for each workload.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sgl_mlx.benchmarks.suite.report.figures import Compared, Figures, Measured
from sgl_mlx.benchmarks.suite.report.formats import times

LEAST = 0.001
"""Lowest ratio on the axis, which is logarithmic; ratios below it are drawn at this place."""

EDGE, LABEL = 3.0, 15.0
"""Percent of the width left free at an end of the axis: without and with room for labels."""


@dataclass(frozen=True)
class Tick:
    at: float
    label: str
    is_parity: bool


@dataclass(frozen=True)
class LogAxis:
    """Logarithmic axis of ratios from `low` to `high`, with 1x inside."""

    low: float
    high: float

    @classmethod
    def over(cls, ratios: Iterable[float]) -> LogAxis:
        """Return the shortest axis that holds all ratios, 1x and 2x."""
        values = [max(ratio, LEAST) for ratio in ratios]
        return cls(min([1.0, *values]), max([2.0, *values]))

    def at(self, ratio: float) -> float:
        """Return the position of a ratio, in percent of the width."""
        left = LABEL if self.low < 1 else EDGE
        share = math.log(max(ratio, LEAST) / self.low) / math.log(self.high / self.low)
        return round(left + share * (100 - left - LABEL), 3)

    @property
    def ticks(self) -> list[Tick]:
        marks = list(_marks(self.low, self.high))
        if len(marks) > 7:  # more would run into each other on a phone
            marks = [mark for mark in marks if math.log10(mark).is_integer()]
        return [Tick(self.at(mark), f"{mark:g}x", mark == 1) for mark in marks]


@dataclass(frozen=True)
class Bar:
    """Bar of one compared system, from 1x to its ratio.

    Attributes:
        colour: number of the system, which selects the colour.
        start, end: positions in percent of the width; equal without a ratio.
        text: the ratio, or "not compared".
        slower: True if our engine was slower.
        note: number of the note with the reason, if there is no ratio.
    """

    peer: str
    colour: int
    start: float
    end: float
    text: str
    slower: bool
    note: int | None


@dataclass(frozen=True)
class Strip:
    """Bars of one workload, or of the geometric means (`is_mean`)."""

    name: str
    about: str
    bars: Sequence[Bar]
    modelled: bool
    is_mean: bool = False


@dataclass(frozen=True)
class RatioPlot:
    axis: LogAxis
    strips: Sequence[Strip]

    @classmethod
    def of(cls, figures: Figures) -> RatioPlot:
        """Make the plot: a strip of geometric means first, then one for each workload."""
        axis = LogAxis.over(r for workload in figures.workloads for r in workload.ratios.values())
        means = [
            _bar(axis, peer, at, figures.geomean[peer], None)
            for at, peer in enumerate(figures.peers)
            if peer in figures.geomean
        ]
        strips = [Strip("geometric mean", "", means, figures.modelled, True)] if means else []
        return cls(axis, [*strips, *(_strip(axis, figures, w) for w in figures.workloads)])


@dataclass(frozen=True)
class TokenStrip:
    """Prompt tokens of our engine on one workload, in percent of all of its prompt tokens.

    Attributes:
        computed: tokens that were computed.
        unique: fewest tokens that must be computed (see `optimum`); None if unknown.
    """

    name: str
    measured: Measured
    computed: float
    unique: float | None


def token_strips(figures: Figures) -> Iterator[TokenStrip]:
    """Yield a strip for each workload that our engine ran."""
    for workload in figures.workloads:
        measured = workload.systems.get(figures.ours)
        if measured is None or measured.hit_rate is None:
            continue
        best = measured.best_hit_rate
        unique = None if best is None else _share(1 - best)
        yield TokenStrip(workload.name, measured, _share(1 - measured.hit_rate), unique)


def _strip(axis: LogAxis, figures: Figures, workload: Compared) -> Strip:
    bars = [
        _bar(axis, peer, at, workload.ratios.get(peer), note.number if note else None)
        for at, peer in enumerate(figures.peers)
        if (note := workload.notes.get(peer)) or peer in workload.ratios
    ]
    return Strip(workload.name, workload.about, bars, workload.modelled)


def _bar(axis: LogAxis, peer: str, colour: int, ratio: float | None, note: int | None) -> Bar:
    end = axis.at(1 if ratio is None else ratio)
    slower = ratio is not None and ratio < 1
    text = "not compared" if ratio is None else times(ratio)
    return Bar(peer, colour, axis.at(1), end, text, slower, note)


def _share(share: float) -> float:
    return round(100 * min(max(share, 0.0), 1.0), 3)


def _marks(low: float, high: float) -> Iterator[float]:
    """Yield 1, 2 and 5 times the powers of ten that lie from `low` to `high`."""
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for mark in (float(f"{digit}e{power}") for digit in (1, 2, 5)):
            if low <= mark <= high:
                yield mark
