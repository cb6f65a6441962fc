"""Protocol of a system under test, whose sessions run programs and count tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Need, Row, Size, Workload
from sgl_mlx.errors import BenchmarkError


class PeerError(BenchmarkError):
    """A compared system is missing, cannot start, died, hung, or sent an unusable answer.

    The suite goes on without the system.
    """


@dataclass(frozen=True)
class Answer:
    """Token counts of one call, as the system counts them.

    Output under a grammar is counted by encoding its text, since systems write the same text with
    different tokens.

    Attributes:
        cached_tokens: prompt tokens that were not computed.
        first: seconds to the first output; None if there was none.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    first: float | None = None


@dataclass
class Usage:
    """Sums of the token counts of all calls of a run; `add` is safe from several threads.

    Attributes:
        first_seconds: seconds to the first output of each call that had one.
    """

    calls: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    first_seconds: list[float] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, answer: Answer) -> None:
        with self._lock:
            self.calls += 1
            self.prompt_tokens += answer.prompt_tokens
            self.output_tokens += answer.output_tokens
            self.cached_tokens += answer.cached_tokens
            if answer.first is not None:
                self.first_seconds.append(answer.first)

    @property
    def work(self) -> dict[str, int]:
        """Counts that must be equal on two systems for their times to be comparable."""
        return {
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
        }


class Session(Protocol):
    """A warmed-up system with an empty cache, for one run of a workload.

    Attributes:
        usage: sums over all calls so far.
    """

    @property
    def usage(self) -> Usage: ...

    def run(self, row: Row) -> None:
        """Run the workload's program once to its end, with the arguments `row`; from any thread.

        Raises:
            PeerError: when the system fails; our engine raises errors of its own.
        """
        ...

    def details(self) -> Mapping[str, Any]:
        """Return counts and seconds that only this system has; called after all runs."""
        ...


class System(Protocol):
    """A program that runs workloads: our engine, or a server compared with it.

    Attributes:
        name: the system's name in reports.
        abilities: the needs of workloads (`Workload.needs`) that this system meets.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Version of this system; "" if unknown or listed with the packages."""
        ...

    @property
    def instruction_sets(self) -> str:
        """Instruction sets that the program was compiled for; "" if unknown."""
        ...

    @property
    def abilities(self) -> frozenset[Need]: ...

    def session(
        self, workload: Workload, size: Size, words: Words
    ) -> AbstractContextManager[Session]:
        """Return a context with a new session; leaving it ends whatever entering it started.

        Raises:
            PeerError: on entering, if the system cannot be started or reached.
        """
        ...
