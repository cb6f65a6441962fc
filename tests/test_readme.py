"""The README's programs print the text shown below them, and its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text("utf-8")


def test_the_first_program_prints_what_stands_below_it() -> None:
    program, shown = re.findall(r"```(?:python|text)\n(.*?)```", TEXT, re.DOTALL)[:2]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})
    assert printed.getvalue() == shown


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert missing == []


def test_a_newcomer_reads_it_in_one_sitting() -> None:
    assert len(TEXT.splitlines()) <= 200
