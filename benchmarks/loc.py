"""Count of lines of code: one task, written in the language and with plain HTTP calls.

A line counts if it holds code, imports included. Blank lines, comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAIR = Path(__file__).parent / "article_analysis"

_NO_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


@dataclass(frozen=True)
class Lengths:
    """Lines of code of the same task: in the language and with plain HTTP calls."""

    language: int
    http: int

    @property
    def ratio(self) -> float:
        return self.http / self.language

    def to_dict(self) -> dict[str, Any]:
        return {"language": self.language, "http": self.http, "ratio": round(self.ratio, 2)}


PAPER = Lengths(language=91, http=206)
"""Lengths quoted from the SGLang paper's first version (arXiv 2312.07104v1), section 6.3.3."""


def ours(folder: Path = PAIR) -> Lengths:
    """Count the lines of both versions of the article analysis in `folder`."""
    program, http = (
        lines_of_code((folder / file).read_text("utf-8")) for file in ("program.py", "http.py")
    )
    return Lengths(program, http)


def lines_of_code(source: str) -> int:
    """Count the lines of Python source that hold code.

    Docstrings do not count; every line of any other string does.

    Raises:
        SyntaxError: when `source` is not Python.
    """
    documented = _documented(source)
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - documented)


def _documented(source: str) -> set[int]:
    """Return the line numbers of all docstrings, including docstrings of attributes."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines
