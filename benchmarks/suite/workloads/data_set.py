"""A workload that runs on a user's data set instead of generated texts."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Row, Size, Workload
from sgl_mlx.errors import BenchmarkError


def over_data(workload: Workload, file: Path) -> Workload:
    """Return the workload with one row for each line of `file`, a JSON object per line.

    A line holds some or all arguments of the workload's program, by name. Arguments that a line
    leaves out are taken from the generated rows in turn; `--scale` shrinks only the generated
    arguments.

    The file is read when the rows of the new workload are made. Reading raises `BenchmarkError` for
    a missing or empty file or a wrong line; the message names the line and what is expected.
    """

    def rows(words: Words, size: Size) -> list[Row]:
        generated = itertools.cycle(workload.rows(words, size))
        lines = [line for line in enumerate(_read(file), start=1) if line[1].strip()]
        if not lines:
            raise BenchmarkError(f"{file} is empty; it must have a JSON object on each line")
        found: list[Row] = []
        for (number, line), made in zip(lines, generated, strict=False):
            found.append({**made, **_parse(line, made, f"{file}, line {number}")})
        return found

    return replace(workload, rows=rows)


def _read(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{file} cannot be read: {error}") from error


def _parse(line: str, made: Row, where: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"{where} is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise BenchmarkError(f"{where} is {type(given).__name__}, it must be an object")
    for name, value in given.items():
        if name not in made:
            raise BenchmarkError(f"{where}: {name!r} is none of {', '.join(made)}")
        wanted = type(made[name])
        if type(value) is not wanted:
            raise BenchmarkError(
                f"{where}: {name} is {type(value).__name__}, it must be {wanted.__name__}"
            )
    return given
