"""The protocol of a system under test: sessions that run rows and count their work."""

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
    """A peer is missing, died, hung, or sent an unreadable answer. The suite goes on without it."""


@dataclass(frozen=True)
class Answer:
    """Tokens of one call as the system counts them; `first` is the time to first token in seconds.

    Outputs under a grammar are counted as the tokenizer spells them: systems come to the same text
    by different tokens.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    first: float | None = None


@dataclass
class Usage:
    """Sum over all calls of a run. Safe to add to from several threads."""

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
        """Counts that must be equal on two systems before their times are compared."""
        return {
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
        }


class Session(Protocol):
    """A system with an empty cache, ready for one run of a workload."""

    @property
    def usage(self) -> Usage: ...

    def run(self, row: Row) -> None:
        """Run one row to its end; from any thread.

        Raises:
            PeerError: with what went wrong.
        """
        ...

    def details(self) -> Mapping[str, Any]:
        """Return counts and seconds that only this system has, after all rows have run."""
        ...


class System(Protocol):
    """A program that runs workloads: our engine or a peer."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """The program's version; empty where the suite's own versions say it."""
        ...

    @property
    def instruction_sets(self) -> str:
        """Instruction sets that the program was compiled for; empty where it does not say."""
        ...

    @property
    def abilities(self) -> frozenset[Need]: ...

    def session(
        self, workload: Workload, size: Size, words: Words
    ) -> AbstractContextManager[Session]:
        """Open a fresh, warmed-up session; leaving the context ends all its processes.

        Raises:
            PeerError: it cannot be started.
        """
        ...
