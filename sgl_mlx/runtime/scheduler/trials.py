"""The search for the row that makes a step fail: the rows of that step are tried again by halves.

A row that fails when it is tried alone is at fault. Any other goes on as soon as it is past the
step that failed. So a fault that comes once ends nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

from sgl_mlx.runtime.scheduler.sequence import Sequence


class Trials:
    """Groups of rows still to be tried, one group at a time; nothing else runs meanwhile."""

    def __init__(self) -> None:
        self._groups: list[dict[Sequence, int]] = []  # the last one is tried

    def split(self, goals: Mapping[Sequence, int]) -> Sequence | None:
        """Take the rows of a step that failed; return the row at fault if it was tried alone.

        Args:
            goals: by row, how many tokens are computed once it is past that step.
        """
        tried = any(group.keys() == goals.keys() for group in self._groups)
        self._groups = [
            {s: goal for s, goal in group.items() if s not in goals} for group in self._groups
        ]
        rows = list(goals.items())
        if tried and len(rows) == 1:
            return rows[0][0]
        half = len(rows) // 2
        self._groups += [dict(rows[half:]), dict(rows[:half])]
        return None

    def rows(self, running: list[Sequence]) -> list[Sequence]:
        """List the rows that are tried in the next step; none when all have been."""
        while self._groups and not self._left(running):
            self._groups.pop()
        return self._left(running) if self._groups else []

    def _left(self, running: list[Sequence]) -> list[Sequence]:
        goals = self._groups[-1]
        return [s for s in running if s.computed < goals.get(s, 0)]
