"""The pulse of the engine thread: what it does now, and how long such work took before."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from sgl_mlx.runtime.scheduler.plan import Decode, Plan

FIRST = 12.0
"""Factor of the limit for work of a kind that has not been done before, or is never learned."""
_SLOWER = 4.0
"""Factor by which work may take longer than the longest of its kind so far."""

_MOST_DONE = 10_000
"""Most pieces of finished work that wait to be learned."""
ORDER = "order"
"""Name of work that tells nothing about other work of that name."""

Kind = Hashable


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
        """Work of equal kind takes about equally long; None tells nothing about other work."""
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
        so far. Work of a new kind may take twelve times `seconds`, because kernels may have to be
        compiled for it.
        """
        kind = work.kind
        longest = None if kind is None else self._longest.get(kind)
        return FIRST * seconds if longest is None else max(seconds, _SLOWER * longest)


def kind_of(plan: Plan) -> Kind:
    """Return the kind of a plan's step.

    Steps of one kind have the same sort of plan, and equally many tokens and longest prefixes,
    both by powers of two.
    """
    rows = plan.opening if isinstance(plan, Decode) else plan.rows
    before = max((len(row.prefix) for row in rows), default=0)
    pictures = any(row.pictures for row in rows)
    tokens = _count(plan).bit_length()
    return type(plan), bool(rows), tokens, before.bit_length(), pictures


def _count(plan: Plan) -> int:
    return len(plan.ids) if isinstance(plan, Decode) else sum(len(r.tokens) for r in plan.rows)
