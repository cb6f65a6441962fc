"""The pulse of the engine thread: what it does now, and how long similar work took so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from sgl_mlx.runtime.scheduler.plan import Decode, Plan

FIRST = 12.0
"""Factor by which the limit is larger for work of a kind that was never seen before."""
_SLOWER = 4.0
"""Factor by which work may take longer than the longest of its kind so far."""

_MOST_DONE = 10_000
"""Most pieces of finished work that wait to be learned."""
ORDER = "order"
"""Name of the work of orders: how long one takes tells nothing about another."""

Kind = Hashable


@dataclass(frozen=True)
class StepKind:
    """The kind of a plan's step; steps of one kind take about equally long.

    Attributes:
        plan: the class of the plan.
        opens: False if the step goes on with an epoch of decode steps.
        tokens: bit length of the number of new tokens, so that similar numbers are one kind.
        prefix: bit length of the length of the longest prefix.
        pictures: True if the step takes features of pictures.
    """

    plan: type
    opens: bool
    tokens: int
    prefix: int
    pictures: bool

    def times(self, other: StepKind) -> float:
        """Return the largest factor by which a step takes longer than one of kind `other`.

        The time is assumed to grow in proportion to the number of tokens, and to the length of the
        prefix. Returns infinity if the two kinds compute different things.
        """
        if (self.plan, self.pictures) != (other.plan, other.pictures):
            return math.inf
        longer = max(0, self.tokens - other.tokens) + max(0, self.prefix - other.prefix)
        return 2.0**longer


@dataclass(eq=False)
class Work:
    """One piece of work of the engine thread.

    Attributes:
        what: the plan that is computed, or the name of other work.
        seconds: how long the work took; None while it is in progress.
    """

    what: Plan | str
    seconds: float | None = None

    @property
    def kind(self) -> Kind:
        """The kind of the work: work of equal kind takes about equally long; None for an order."""
        if isinstance(self.what, str):
            return None if self.what == ORDER else self.what
        return kind_of(self.what)

    @property
    def name(self) -> str:
        """The name of the work in messages."""
        if isinstance(self.what, str):
            return self.what
        return f"{type(self.what).__name__.lower()} step of {_count(self.what)} tokens"


class Pulse:
    """The work that one thread does and did; that thread writes it, and the watchdog reads it.

    Attributes:
        work: the work in progress; None while the thread waits for something to do. Each piece of
            work is an object of its own.
        done: finished work that `learn` has not seen yet.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self.done: deque[Work] = deque(maxlen=_MOST_DONE)
        self._longest: dict[Kind, float] = {}

    def learn(self) -> None:
        """Remember how long the finished work took, by its kind; call it on the watchdog's thread.

        The engine thread only appends to `done`, so that this costs its steps nothing.
        """
        while self.done:
            work = self.done.popleft()
            if (kind := work.kind) is not None and work.seconds is not None:
                self._longest[kind] = max(work.seconds, self._longest.get(kind, 0.0))

    def limit(self, work: Work, seconds: float) -> float:
        """Return the seconds after which work counts as hung.

        Work of a known kind may take `seconds`, or four times as long as the longest of its kind
        so far. For a step of a new kind, the limit is estimated from the known kinds of steps. For
        other new work, and at most, it is twelve times `seconds`, because weights may still have to
        be read and kernels compiled.
        """
        kind = work.kind
        if kind in self._longest:
            return max(seconds, _SLOWER * self._longest[kind])
        return min(FIRST * seconds, max(seconds, _SLOWER * self._expected(kind)))

    def _expected(self, kind: Kind) -> float:
        """Return the most seconds that work of a new kind should take; infinity if unknown."""
        if not isinstance(kind, StepKind):
            return math.inf
        known = (
            kind.times(other) * longest
            for other, longest in self._longest.items()
            if isinstance(other, StepKind)
        )
        return min(known, default=math.inf)


def kind_of(plan: Plan) -> StepKind:
    """Return the kind of a plan's step."""
    rows = plan.opening if isinstance(plan, Decode) else plan.rows
    return StepKind(
        plan=type(plan),
        opens=bool(rows),
        tokens=_count(plan).bit_length(),
        prefix=max((len(row.prefix) for row in rows), default=0).bit_length(),
        pictures=any(row.pictures for row in rows),
    )


def _count(plan: Plan) -> int:
    return len(plan.ids) if isinstance(plan, Decode) else sum(len(r.tokens) for r in plan.rows)
