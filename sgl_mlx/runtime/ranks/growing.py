"""Compression of plans: of a row's slots and tokens, only those new to the other ranks are sent.

The rows of consecutive plans differ by a few slots at the end of a prefix of thousands. Both ends
of a connection remember the rows that were sent last, by the same rule, so that they need not agree
on anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sgl_mlx.runtime.cache.radix import common_prefix
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, Row

_MOST = 1024
"""Most rows that are remembered."""

Parts = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The parts of a row that grow: slots, output and history."""
Kept = tuple[int, int, int]
"""How many numbers at the start of each part the other end knows."""


class GrowingRows:
    """The rows that were sent last. The sending end calls `cut`, the receiving end calls `mend`."""

    def __init__(self) -> None:
        self._known: dict[str, Parts] = {}

    def cut(self, plan: Plan) -> tuple[list[Kept], Plan]:
        """Remove from a plan's rows what the other end knows; return how much that was."""
        kept: list[Kept] = []

        def cut_row(row: Row) -> Row:
            known, parts = self._known.get(row.id, ((), (), ())), _parts(row)
            a, b, c = (common_prefix(k, p, 0) for k, p in zip(known, parts, strict=True))
            kept.append((a, b, c))
            self._remember(row)
            return replace(row, prefix=parts[0][a:], output=parts[1][b:], history=parts[2][c:])

        return kept, _each_row(plan, cut_row)

    def mend(self, kept: Iterable[Iterable[int]], plan: Plan) -> Plan:
        """Put back what `cut` removed from the same plan at the other end.

        Raises:
            ValueError: `kept` does not fit the plan or the rows of earlier plans.
        """
        counts = iter(kept)

        def mend_row(row: Row) -> Row:
            known = self._known.get(row.id, ((), (), ()))
            a, b, c = next(counts)
            if any(n > len(k) for n, k in zip((a, b, c), known, strict=True)):
                raise ValueError(f"row {row.id} refers to more slots or tokens than travelled")
            whole = replace(
                row,
                prefix=known[0][:a] + row.prefix,
                output=known[1][:b] + row.output,
                history=known[2][:c] + row.history,
            )
            self._remember(whole)
            return whole

        return _each_row(plan, mend_row)

    def _remember(self, row: Row) -> None:
        """Remember a row's slots, with those that this step writes, as the next plan's prefix."""
        self._known.pop(row.id, None)
        self._known[row.id] = row.prefix + row.slots, row.output, row.history
        while len(self._known) > _MOST:
            del self._known[next(iter(self._known))]


def _parts(row: Row) -> Parts:
    return row.prefix, row.output, row.history


def _each_row(plan: Plan, change: Callable[[Row], Row]) -> Plan:
    if isinstance(plan, Decode):
        return replace(plan, opening=tuple(map(change, plan.opening)))
    return replace(plan, rows=tuple(map(change, plan.rows)))
