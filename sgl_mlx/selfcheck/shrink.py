"""Shrinking of programs that show a difference, to the smallest that still show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from sgl_mlx.selfcheck.statements import (
    Ask,
    Body,
    Choose,
    Fork,
    Program,
    Say,
    Show,
    Statement,
    Turn,
)

_LONG = 16
"""Most characters of a text that is shrunk by single characters; longer texts are halved."""


@dataclass(frozen=True)
class Case:
    """Programs and the rounds in which they run; each round lists indices of `programs`."""

    programs: tuple[Program, ...]
    rounds: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rounds: Sequence[Sequence[Program]]) -> Case:
        """Make a case of rounds of programs; the same object in two rounds is one program."""
        programs: list[Program] = []
        indices = [tuple(_index(program, programs) for program in group) for group in rounds]
        return cls(tuple(programs), tuple(indices))

    def groups(self) -> list[list[Program]]:
        """Return the programs of each round."""
        return [[self.programs[i] for i in group] for group in self.rounds]


def _index(program: Program, programs: list[Program]) -> int:
    for i, known in enumerate(programs):
        if known is program:
            return i
    programs.append(program)
    return len(programs) - 1


def shrink(
    case: Case, fails: Callable[[Case], bool], tries: int = 1000, seconds: float = 60
) -> Case:
    """Return the simplest case found for which `fails` is still true.

    Simpler cases are tried, much simpler ones first. The first that fails takes the place of
    `case`, and the search goes on from there. It ends when no simpler case fails, or when the tries
    or the time are used up.
    """
    until = monotonic() + seconds
    right: set[str] = set()
    while (candidate := _next(case, right)) is not None and tries > 0 and monotonic() < until:
        tries -= 1
        if fails(candidate):
            case = candidate
        else:
            right.add(repr(candidate))
    return case


def _next(case: Case, right: set[str]) -> Case | None:
    """Return the next simpler case that was not tried yet."""
    return next((each for each in _simpler_case(case) if repr(each) not in right), None)


def _simpler_case(case: Case) -> Iterator[Case]:
    groups = case.groups()
    half = len(groups) // 2
    if half:
        yield Case.of(groups[half:])
        yield Case.of(groups[:half])
    for i, group in enumerate(groups):
        if len(groups) > 1:
            yield Case.of(groups[:i] + groups[i + 1 :])
        half = len(group) // 2
        shorter = [group[half:], group[:half]] if half > 1 else []
        shorter += [group[:n] + group[n + 1 :] for n in range(len(group))] if half else []
        for some in shorter:
            yield Case.of([*groups[:i], some, *groups[i + 1 :]])
    for i, program in enumerate(case.programs):
        for simpler in simpler_programs(program):
            yield replace(case, programs=(*case.programs[:i], simpler, *case.programs[i + 1 :]))


def simpler_programs(program: Program) -> Iterator[Program]:
    """Yield programs that lack something of `program`, the much simpler ones first."""
    for body in _bodies(program.body):
        yield replace(program, body=body)
    for name, value in program.settings.items():
        if name != "seed":
            yield replace(program, settings=_without(program.settings, name))
        elif value:
            yield replace(program, settings={**program.settings, "seed": 0})


def _bodies(body: Body) -> Iterator[Body]:
    half = len(body) // 2
    if half > 1:
        yield body[half:]
        yield body[:half]
    for i in range(len(body)):
        yield body[:i] + body[i + 1 :]
    for i, statement in enumerate(body):
        for simpler in _statements(statement):
            yield (*body[:i], *simpler, *body[i + 1 :])


def _statements(statement: Statement) -> Iterator[Body]:
    match statement:
        case Say(text):
            yield from ((Say(shorter),) for shorter in _texts(text))
        case Ask(name, sampling):
            for key, value in sampling.items():
                if key == "max_tokens":
                    yield from ((Ask(name, {**sampling, key: n}),) for n in _numbers(value))
                else:
                    yield (Ask(name, _without(sampling, key)),)
                    if key == "temperature" and value:
                        yield (Ask(name, {**sampling, key: 0}),)
        case Choose(name, offered, method):
            if len(offered) > 1:
                yield (Choose(name, offered[:1], method),)
                yield (Choose(name, offered[1:], method),)
            if method != Choose.method:
                yield (Choose(name, offered),)
        case Turn(role, inner):
            yield inner
            yield from ((Turn(role, shorter),) for shorter in _bodies(inner))
        case Fork():
            yield from _forks(statement)
        case Show():
            return


def _forks(fork: Fork) -> Iterator[Body]:
    yield from fork.branches
    if any(fork.gaps):
        yield (replace(fork, gaps=()),)
    if fork.join is not None:
        yield (replace(fork, join=None),)
    for i, branch in enumerate(fork.branches):
        others = (*fork.branches[:i], *fork.branches[i + 1 :])
        if len(fork.branches) > 2:
            yield (Fork(others, fork.join, fork.gaps[:i] + fork.gaps[i + 1 :]),)
        for body in _bodies(branch):
            yield (replace(fork, branches=(*fork.branches[:i], body, *fork.branches[i + 1 :])),)


def _texts(text: str) -> Iterator[str]:
    length = len(text)
    cuts = (length // 2, length // 4) if length > _LONG else (length // 2, 1)
    for cut in cuts:
        if 0 < cut < length:
            yield text[:-cut]
            yield text[cut:]


def _numbers(number: int) -> Iterator[int]:
    if number > 1:
        yield from (1, number // 2, number - 1)


def _without(values: Any, name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
