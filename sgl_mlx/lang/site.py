"""Lines of programs, which later errors name."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A line of a program."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        quoted = f": {source}" if source else ""
        return f"in {self.function}(), {self.file}:{self.line}{quoted}"


def call_site() -> Site:
    """Return the innermost calling line outside the language's own modules."""
    frame = sys._getframe(1)
    while frame.f_back and _is_own(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return Site(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno)


def _is_own(module: str) -> bool:
    return module == "contextlib" or module.startswith("sgl_mlx.lang.")


def note_site(error: BaseException, site: Site) -> None:
    """Add the line to the error's notes, which a traceback prints after it (PEP 678)."""
    notes = [*getattr(error, "__notes__", ()), str(site)]
    error.__notes__ = notes  # add_note() needs Python 3.11
