"""`SelfCheck`: rounds of random programs, each run alone and in other ways, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

from sgl_mlx.selfcheck.compare import Difference, compare
from sgl_mlx.selfcheck.draw import Abilities, draw
from sgl_mlx.selfcheck.engines import Engines
from sgl_mlx.selfcheck.recording import Answer
from sgl_mlx.selfcheck.shrink import Case, shrink
from sgl_mlx.selfcheck.source import source_of
from sgl_mlx.selfcheck.statements import Program
from sgl_mlx.selfcheck.ties import Ties
from sgl_mlx.selfcheck.ways import ALONE, WAYS, Group, Way

_KEPT = 4
"""Rounds that are run again to find out what shows a difference."""
_ATTEMPTS = 6
"""Times that programs are run to see a difference again: threads differ from run to run."""
_ATTEMPTS_OF_CASE = 3
"""Times that a simpler case is run before it counts as right."""
_TRIES_ELSEWHERE = 20
"""Most cases tried while shrinking, if each of them needs a new process."""
_TRIES = 1000
"""Most cases that are tried to find the smallest one."""
_ELSEWHERE = 48
"""Most programs that a new process runs again."""


@dataclass
class Row:
    """Counts of the answers compared in one way of running; see `compare.Comparison`."""

    programs: int = 0
    answers: int = 0
    ties: int = 0
    after_ties: int = 0
    differences: int = 0


@dataclass(frozen=True)
class Finding:
    """A difference, and the smallest programs found that show it.

    Attributes:
        source: Python source that shows the difference again.
        reproduced: False if the programs did not show the difference again.
    """

    way: Way
    difference: Difference
    case: Case
    source: str
    reproduced: bool


@dataclass
class Report:
    """The result of a check; `counts` are counts of the engines' statistics by way."""

    seed: int
    programs: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    finding: Finding | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


class SelfCheck:
    """A check that programs are answered alike in several ways.

    Args:
        engines: the engines of the model.
        ways: the other ways to run programs; their answers are compared with those of the programs
            run alone.
        seed: seed of the programs.
        batch: programs in a round, which run at once.
        answers: most answers that a program asks for.
        new: most tokens of an answer.
        shrink_seconds: most seconds of shrinking.
        shrink_tries: most cases that are tried while shrinking.
    """

    def __init__(
        self,
        engines: Engines,
        ways: Sequence[Way] = WAYS,
        seed: int = 0,
        batch: int = 16,
        answers: int = 3,
        new: int = 8,
        shrink_seconds: float = 60,
        shrink_tries: int = _TRIES,
    ) -> None:
        self.report = Report(seed, rows={way.name: Row() for way in ways})
        self._engines = engines
        self._ways = ways
        self._batch = batch
        self._shrink_limits = shrink_tries, shrink_seconds
        self._alone: dict[int, tuple[Program, list[Answer]]] = {}
        self._able = Abilities.of(engines.alone(), answers, new)
        self._ties = Ties(engines.alone())
        self._rounds: list[list[Program]] = []

    def run(
        self,
        programs: int | None = None,
        seconds: float | None = None,
        progress: Callable[[Report], None] = lambda _: None,
    ) -> Report:
        """Draw and compare programs until a difference, their number or the time is reached.

        Args:
            progress: called after every round.
        """
        started = monotonic()
        for number in self._rounds_of(programs):
            if self.report.finding or (seconds and monotonic() - started > seconds):
                break
            self.round(number)
            progress(self.report)
        self.finish()
        return self.report

    def _rounds_of(self, programs: int | None) -> Iterator[int]:
        return iter(range(-(-programs // self._batch))) if programs else count()

    def round(self, number: int, ways: Sequence[Way] = ()) -> None:
        """Draw a round of programs, run them in every way of this process, and compare.

        Args:
            number: number of the round, on which its programs depend.
            ways: the ways in which to run the programs; all if empty.
        """
        programs = [draw((self.report.seed, number, i), self._able) for i in range(self._batch)]
        self._rounds = [*self._rounds[1 - _KEPT :], programs]
        self.report.programs += len(programs)
        alone = self._engines.run(ALONE, programs)
        for way in ways or self._ways:
            if not way.elsewhere and self.report.finding is None:
                self._compare(way, programs, alone)

    def finish(self) -> None:
        """Run the last rounds' programs in a new process, and collect the engines' counts."""
        programs = [program for group in self._rounds for program in group][-_ELSEWHERE:]
        for way in self._ways:
            if way.elsewhere and programs and self.report.finding is None:
                self._compare(way, programs, self._engines.run(ALONE, programs))
        self.report.counts = self._engines.counts()

    def _compare(self, way: Way, programs: list[Program], alone: list[list[Answer]]) -> None:
        chosen = [i for i, program in enumerate(programs) if way.takes(program)]
        found = self._engines.run(way, [programs[i] for i in chosen])
        row = self.report.rows[way.name]
        for i, answers in zip(chosen, found, strict=True):
            result = compare(alone[i], answers, self._ties)
            row.programs += 1
            row.answers += result.answers
            row.ties += result.ties
            row.after_ties += result.after_ties
            row.differences += len(result.differences)
            if result.differences and self.report.finding is None:
                self.report.finding = self._find(way, programs[i], result.differences[0])

    # -- the smallest programs that show a difference -----------------------------------------

    def _find(self, way: Way, culprit: Program, difference: Difference) -> Finding:
        last = self._rounds[-1]
        starts = ([[culprit]], [[culprit], [culprit]], [last], [last, last], self._rounds)
        attempts = 1 if way.elsewhere else _ATTEMPTS
        cases = (Case.of(rounds) for rounds in starts)
        case = next((case for case in cases if self._fails(way, case, attempts)), None)
        reproduced = case is not None
        if case is None:
            case = Case.of([[culprit]])
        else:
            case = self._shrunk(way, case)
            difference = self._difference(way, case) or difference
        source = source_of(
            case.programs, way, self._engines.path, case.rounds, self._engines.options
        )
        return Finding(way, difference, case, source, reproduced)

    def _shrunk(self, way: Way, case: Case) -> Case:
        tries, seconds = self._shrink_limits
        if way.elsewhere:
            tries, attempts = min(tries, _TRIES_ELSEWHERE), 1
        else:
            always = all(self._difference(way, case) for _ in range(_ATTEMPTS_OF_CASE))
            attempts = 1 if always else _ATTEMPTS_OF_CASE
        return shrink(case, lambda some: self._fails(way, some, attempts), tries, seconds)

    def _fails(self, way: Way, case: Case, attempts: int) -> bool:
        return any(self._difference(way, case) is not None for _ in range(attempts))

    def _difference(self, way: Way, case: Case) -> Difference | None:
        self._engines.forget()
        for programs in case.groups():
            found = self._engines.run(way, programs)
            for program, other in zip(programs, found, strict=True):
                one = self._run_alone(program)
                if differences := compare(one, other, self._ties).differences:
                    return differences[0]
        return None

    def _run_alone(self, program: Program) -> list[Answer]:
        """Return the answers of a program run alone; the same program is run only once."""
        if id(program) not in self._alone:
            [answers] = self._engines.run(ALONE, [program])
            self._alone[id(program)] = program, answers
        return self._alone[id(program)][1]


class DifferenceFound(AssertionError):
    """Two ways to run the same programs gave different answers."""


def reproduce_on(engines: Engines, way: Way, rounds: Sequence[Sequence[Any]]) -> None:
    """Run rounds of programs alone and in another way, and compare the answers.

    Args:
        rounds: lists of `Program`, or of pairs of a function and its settings.

    Raises:
        DifferenceFound: the answers differ.
    """
    ties = Ties(engines.alone())
    for group in rounds:
        if all(isinstance(program, Program) for program in group):
            alone, found = engines.run(ALONE, group), engines.run(way, group)
        else:
            groups: list[Group] = [([function], settings) for function, settings in group]
            alone, found = engines.run_groups(ALONE, groups), engines.run_groups(way, groups)
        for one, other in zip(alone, found, strict=True):
            for difference in compare(one, other, ties).differences:
                raise DifferenceFound(str(difference))
