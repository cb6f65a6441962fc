"""The pulse of the engine thread: what it does now, and how long such work took before."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sgl_mlx.runtime.scheduler.plan import Decode, Plan

FIRST = 12.0
"""Factor of the limit for work of a kind that has not been done before, or is never learned."""
_SLOWER = 4.0
"""Factor by which work may take longer than the longest of its kind so far."""

Kind = Hashable


@dataclass(frozen=True)
class Work:
    """One piece of work of the engine thread.

    Attributes:
        kind: work of equal kind takes about equally long; None is work that tells nothing about
            other work.
        name: what messages call it.
    """

    kind: Kind
    name: str


class Pulse:
    """The work that one thread is doing, written by that thread and read by the watchdog.

    Attributes:
        work: the work in progress; None while the thread waits for something to do. Each piece of
            work is an object of its own.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self._longest: dict[Kind, float] = {}

    @contextmanager
    def doing(self, kind: Kind, name: str) -> Iterator[None]:
        """Show a piece of work while the `with` block runs; remember how long its kind takes."""
        self.work = Work(kind, name)
        started = time.monotonic()
        try:
            yield
        finally:
            self.work = None
            if kind is not None:
                seconds = time.monotonic() - started
                self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))

    def limit(self, work: Work, seconds: float) -> float:
        """Return the seconds after which work counts as hung.

        Work of a known kind may take `seconds`, or four times as long as the longest of its kind
        so far. Work of a new kind may take twelve times `seconds`, because kernels may have to be
        compiled for it.
        """
        longest = None if work.kind is None else self._longest.get(work.kind)
        return FIRST * seconds if longest is None else max(seconds, _SLOWER * longest)


def kind_of(plan: Plan) -> tuple[Kind, str]:
    """Return the kind of a plan's step, and its name.

    Steps of one kind have the same sort of plan, and equally many tokens and longest prefixes,
    both by powers of two.
    """
    rows = plan.opening if isinstance(plan, Decode) else plan.rows
    count = len(plan.ids) if isinstance(plan, Decode) else sum(len(row.tokens) for row in rows)
    before = max((len(row.prefix) for row in rows), default=0)
    pictures = any(row.pictures for row in rows)
    sort = type(plan).__name__.lower()
    name = f"{sort} step of {count} tokens"
    return (sort, bool(rows), count.bit_length(), before.bit_length(), pictures), name
