"""Type of a workload: rows of arguments, a program of the language, and its HTTP version.

Both versions send the same prompts in the same order, which a test checks.
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
    """Client of a completion server, used by HTTP versions. Calls block until they are answered."""

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
            stop: strings that end the text.
            grammar: grammar in GBNF that the text must match, for servers that support grammars.
            images: files of the pictures, for which `IMAGE` stands in the prompt, in order.
        """
        ...

    def score(self, prompt: str, choices: Sequence[str]) -> None:
        """Make the server compute the prompt followed by each choice, in one call per choice.

        Servers return no logprobs of a prompt, so no choice can be made. These calls are the least
        work that choosing would take.
        """
        ...


IMAGE = "<image>"
"""Placeholder of a picture in the prompts of the HTTP versions."""


TEMPORARY_FOLDER = "<temporary folder>"
"""Placeholder in engine options for a temporary folder, made anew for each run."""


_SHRINKING = 0.6
"""Exponent of `scale` in the factor for lengths of texts."""


@dataclass(frozen=True)
class Size:
    """Size of a workload relative to the paper.

    Attributes:
        scale: factor for numbers of programs. Lengths of texts shrink less, by `scale ** 0.6`: at
            0.1 there is a tenth of the programs, and texts are a quarter as long.
        folder: where files that a workload needs are written.
    """

    scale: float
    folder: Path = Path()

    def count(self, full: int, least: int = 1) -> int:
        """Scale the paper's number `full` of programs or documents, to at least `least`.

        The result is never above `full`.
        """
        return min(full, max(least, round(full * self.scale)))

    def tokens(self, full: int, least: int = 1) -> int:
        """Scale the paper's number `full` of tokens, to at least `least`; never above `full`."""
        return min(full, max(least, round(full * math.pow(self.scale, _SHRINKING))))


WARM_UP_TOKENS = 4


def warm_up(words: Words) -> list[str]:
    """Return prompts to run before measuring, so that a system loads and compiles all it needs."""
    return [words.text(64, f"warm-up {number}") for number in range(8)]


@dataclass(frozen=True)
class Workload:
    """One benchmark of the suite.

    Args:
        about: description in one line, for the report.
        rows: returns one row of arguments for each run, used by both versions.
        program: the version in the language, run with a row's arguments.
        http: the HTTP version, called with a client and a row's arguments.
        concurrency: number of runs at the same time.
        needs: what a system must support; one that does not is reported as not compared.
        engine: returns the options of our engine that differ from the suite's.
    """

    name: str
    about: str
    rows: Callable[[Words, Size], list[Row]]
    program: Program
    http: Callable[..., None]
    concurrency: int = 32
    needs: frozenset[Need] = frozenset()
    engine: Callable[[Size], Mapping[str, Any]] = lambda size: {}
