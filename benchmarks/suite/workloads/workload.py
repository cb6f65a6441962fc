"""What a workload is: rows of arguments, a program of the language, and its translation to HTTP.

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
    """A completion server, as a program without a language talks to it. Calls wait for answers."""

    def complete(
        self,
        prompt: str,
        max_tokens: int,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        images: Sequence[str] = (),
    ) -> str:
        """The text that follows the prompt.

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
"""Where a picture stands in the prompts of the HTTP versions."""


TEMPORARY_FOLDER = "<temporary folder>"
"""In the options of an engine, stands for a folder that is made for the run."""


_SHRINKING = 0.6
"""Power of the scale by which texts shrink."""


@dataclass(frozen=True)
class Size:
    """How large a workload is made, from its size in the paper.

    Numbers of programs shrink with `scale`, numbers of tokens with a root of it: at 0.1 there is a
    tenth of the programs, and texts are a quarter as long. Files that a workload needs
    are made in `folder`.
    """

    scale: float
    folder: Path = Path()

    def count(self, full: int, least: int = 1) -> int:
        """So many programs, articles or turns, of `full` in the paper."""
        return min(full, max(least, round(full * self.scale)))

    def tokens(self, full: int, least: int = 1) -> int:
        """So many tokens, of `full` in the paper."""
        return min(full, max(least, round(full * math.pow(self.scale, _SHRINKING))))


WARM_UP_TOKENS = 4


def warm_up(words: Words) -> list[str]:
    """Prompts for a system before it is measured: what is loaded or compiled lazily is then."""
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
