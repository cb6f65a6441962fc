"""The search for the sequence that makes a step fail, by trying the step again in halves.

A sequence that fails when tried alone is at fault. All other sequences go on once they are past the
failed step. A fault that does not occur again ends no sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

from sgl_mlx.runtime.scheduler.sequence import Sequence


class Trials:
    """The groups of sequences still to be tried, one at a time; other sequences wait meanwhile."""

    def __init__(self) -> None:
        self._groups: list[dict[Sequence, int]] = []  # the last one is tried

    def split(self, goals: Mapping[Sequence, int]) -> Sequence | None:
        """Record a failed step; split its sequences into two groups to try.

        Args:
            goals: the step's sequences, each with the value of `computed` once it is past the step.

        Returns:
            The sequence at fault, if the failed step tried a single sequence again; else None.
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
        """List the sequences to try in the next step; [] when all are past the failed step."""
        while self._groups and not self._left(running):
            self._groups.pop()
        return self._left(running) if self._groups else []

    def _left(self, running: list[Sequence]) -> list[Sequence]:
        goals = self._groups[-1]
        return [s for s in running if s.computed < goals.get(s, 0)]
