"""`Site`: a line of a program, named in errors that occur later."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A source line of a program: function, file and line number."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        quoted = f": {source}" if source else ""
        return f"in {self.function}(), {self.file}:{self.line}{quoted}"


def call_site() -> Site:
    """Return the innermost line on the call stack that is outside `sgl_mlx.lang`."""
    frame = sys._getframe(1)
    while frame.f_back and _is_own(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return Site(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno)


def _is_own(module: str) -> bool:
    return module == "contextlib" or module.startswith("sgl_mlx.lang.")


def note_site(error: BaseException, site: Site) -> None:
    """Add the source line `site` to an error's notes, which tracebacks print (PEP 678)."""
    notes = [*getattr(error, "__notes__", ()), str(site)]
    error.__notes__ = notes  # add_note() needs Python 3.11
