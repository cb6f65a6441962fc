"""Lines of code of one task in the language and over plain HTTP.

A line counts when it holds code: no blank lines, comments or docstrings; imports count.
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
    """Lines of the same task written twice."""

    language: int
    http: int

    @property
    def ratio(self) -> float:
        return self.http / self.language

    def to_dict(self) -> dict[str, Any]:
        return {"language": self.language, "http": self.http, "ratio": round(self.ratio, 2)}


PAPER = Lengths(language=91, http=206)
"""Quoted, not counted: the first version of the SGLang paper (arXiv 2312.07104v1), 6.3.3."""


def ours(folder: Path = PAIR) -> Lengths:
    """Count both versions of the article analysis."""
    program, http = (
        lines_of_code((folder / file).read_text("utf-8")) for file in ("program.py", "http.py")
    )
    return Lengths(program, http)


def lines_of_code(source: str) -> int:
    """Count the lines that hold code; a docstring holds none, any other long string all its lines.

    Raises:
        SyntaxError: the source is not Python.
    """
    documented = _documented(source)
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - documented)


def _documented(source: str) -> set[int]:
    """Return the lines of docstrings and of string statements that document attributes."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines
