"""The report of `sgl-mlx doctor --report`: checks and measurements as Markdown, for an issue.

User, host and folders are not named in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sgl_mlx.cli.doctor.check import Check
from sgl_mlx.cli.doctor.checks import all_checks
from sgl_mlx.cli.doctor.measure import (
    SELF_TEST,
    SPEED,
    TUNING,
    Say,
    Section,
    guarded,
    self_test,
    speed,
    tuning,
)
from sgl_mlx.cli.doctor.private import Private
from sgl_mlx.errors import BenchmarkError, ModelNotFoundError

REPORT_SECTIONS = (SELF_TEST, TUNING, SPEED)
SECONDS = 60.0
"""Seconds after which no further row of the engine benchmark is started."""
_LONGEST = 300
"""Largest number of characters in a table cell, so that compiler logs are cut."""


@dataclass(frozen=True)
class Report:
    """A report of checks and measurements; the methods that write it remove personal data.

    Attributes:
        private: names and folders to remove.
        paths: paths of the model, which are shortened to their last part.
    """

    checks: tuple[Check, ...]
    sections: tuple[Section, ...]
    private: Private
    paths: tuple[Path, ...] = ()

    def to_markdown(self) -> str:
        """Return the report as Markdown, without personal data."""
        rows = [(check.status, check.name, check.detail) for check in self.checks]
        text = "\n".join(
            [
                f"# sgl-mlx {version('sgl-mlx')} on this machine",
                "",
                "Made by `sgl-mlx doctor --report`. User, host and folders are taken out.",
                "",
                "## Checks",
                "",
                *_table(("", "check", "found"), rows),
                *(line for section in self.sections for line in _lines(section)),
            ]
        )
        return self.private.remove(text, self.paths) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON document, without personal data."""
        found = {
            "version": version("sgl-mlx"),
            "checks": [vars(check) for check in self.checks],
            "sections": [
                {
                    "title": section.title,
                    "summary": section.summary,
                    "headings": section.headings,
                    "rows": section.rows,
                    **section.facts,
                }
                for section in self.sections
            ],
        }
        cleaned: dict[str, Any] = _clean(found, self.private, self.paths)
        return cleaned


def make_report(model: str | None, say: Say, seconds: float = SECONDS) -> Report:
    """Check and measure this machine; takes some minutes.

    Args:
        model: model for the engine benchmark; None is the default model.
        say: called with lines that show the progress.
        seconds: time after which no further row of the engine benchmark is started.
    """
    say("checking the machine")
    checks = tuple(all_checks(model))
    measures = (lambda: self_test(say), lambda: tuning(say), lambda: speed(model, seconds, say))
    sections = tuple(map(guarded, REPORT_SECTIONS, measures))
    return Report(checks, sections, Private.here(), _model_paths(model))


def write(text: str, file: Path) -> None:
    """Write a file atomically: after an error, an existing file is unchanged.

    Raises:
        BenchmarkError: the file cannot be written.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BenchmarkError(f"cannot write {file}: {error.strerror}") from error


def _model_paths(model: str | None) -> tuple[Path, ...]:
    from sgl_mlx.models.resolve import resolve

    try:
        path = resolve(model, offline=True)[1]
    except ModelNotFoundError:
        return ()
    return path, path.absolute()


def _lines(section: Section) -> Iterable[str]:
    yield from ("", f"## {section.title}", "", section.summary, "")
    if section.rows:
        yield from _table(section.headings, section.rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    line = " ".join(text.replace("|", "\\|").split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _clean(value: Any, private: Private, paths: Sequence[Path]) -> Any:
    """Return a JSON value with personal data removed from every text in it."""
    if isinstance(value, str):
        return private.remove(value, paths)
    if isinstance(value, dict):
        return {_clean(k, private, paths): _clean(v, private, paths) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each, private, paths) for each in value]
    return value
