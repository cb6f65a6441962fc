"""The workload type: rows of arguments, a program of the language, and its HTTP version.

Both versions ask the same questions in the same order; a test compares their prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.lang.program import Program

Row = Mapping[str, Any]
Need = Literal["grammar", "images"]


class Client(Protocol):
    """A completion server as the HTTP versions use it. Calls block until the answer is complete."""

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        images: Sequence[str] = (),
    ) -> str:
        """Return the text that follows the prompt.

        Args:
            grammar: GBNF, for servers that have it.
            images: files; `IMAGE` stands for them in the prompt.
        """
        ...

    def score(self, prompt: str, choices: Sequence[str]) -> None:
        """Have each choice computed after the prompt, one call each.

        The servers return no log-probabilities of a prompt, so nothing can be chosen: this is the
        least that choosing takes.
        """
        ...


IMAGE = "<image>"
"""Placeholder of a picture in the prompts of the HTTP versions."""


TEMPORARY_FOLDER = "<temporary folder>"
"""Placeholder in engine options for a folder that is made for the run."""


_SHRINKING = 0.6
"""Exponent of the scale for the length of texts."""


@dataclass(frozen=True)
class Size:
    """Size of a workload relative to the paper.

    Numbers of programs shrink with `scale`, numbers of tokens with a root of it: at 0.1 there is a
    tenth of the programs, and texts are a quarter as long. Files that a workload needs
    are made in `folder`.
    """

    scale: float
    folder: Path = Path()

    def count(self, full: int, least: int = 1) -> int:
        """Scale a number of programs, articles or turns from the paper's `full`."""
        return min(full, max(least, round(full * self.scale)))

    def tokens(self, full: int, least: int = 1) -> int:
        """Scale a number of tokens from the paper's `full`."""
        return min(full, max(least, round(full * math.pow(self.scale, _SHRINKING))))


WARM_UP_TOKENS = 4


def warm_up(words: Words) -> list[str]:
    """Return prompts that warm a system up: lazy loading and compiling is not measured."""
    return [words.text(64, f"warm-up {number}") for number in range(8)]


@dataclass(frozen=True)
class Workload:
    """One benchmark of the suite.

    Args:
        about: one line for the report.
        rows: the arguments of each run, for both versions.
        program: called with a row's arguments.
        http: called with a client and a row's arguments.
        concurrency: how many runs are under way at a time.
        needs: what a system must be able to do; those that cannot are left out, and it is said.
        engine: options of our engine that differ from the suite's.
    """

    name: str
    about: str
    rows: Callable[[Words, Size], list[Row]]
    program: Program
    http: Callable[..., None]
    concurrency: int = 32
    needs: frozenset[Need] = frozenset()
    engine: Callable[[Size], Mapping[str, Any]] = lambda size: {}
