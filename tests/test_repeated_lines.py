"""No eight lines stand in two places of the package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sgl_mlx", "models", "cli", "metal_kernels", "cpu_kernels", "benchmarks")
LONGEST = 8

KEPT: dict[frozenset[str], str] = {
    frozenset({"sgl_mlx/lang/choices.py"}): "SGLang's signature of a method, and one that has it",
    frozenset({"sgl_mlx/runtime/engine.py"}): "the overloads of a method repeat its signature",
    frozenset({"benchmarks/modelled/token_counts.py", "benchmarks/peers/completions.py"}): "below",
    frozenset({"benchmarks/peers/completions.py", "benchmarks/suite/workloads/workload.py"}): (
        "the signature of `Client.complete`, and two clients that have it"
    ),
}
"""Files that share as many lines, each with the reason."""

TRIVIAL = re.compile(r"\W*$|\s*(#|import |from |//|#include|using )|\s*[\"']{3}")
Line = tuple[int, str]


def telling(text: str) -> list[Line]:
    """Number and text of the lines that say something of their own; import lists are skipped."""
    text = re.sub(r"(?ms)^from \S+ import \(.*?^\)", lambda m: "\n" * m[0].count("\n"), text)
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return [(number, line) for number, line in lines if not TRIVIAL.match(line)]


def repetitions(texts: Mapping[str, str], length: int) -> Iterator[tuple[str, int, str, int]]:
    """Two places that share `length` telling lines: file and line of each, once a pair of runs."""
    first: dict[tuple[str, ...], list[tuple[str, int, int]]] = {}
    for name, text in texts.items():
        lines = telling(text)
        for i in range(len(lines) - length + 1):
            window = tuple(line for _, line in lines[i : i + length])
            first.setdefault(window, []).append((name, i, lines[i][0]))
    seen: set[tuple[str, int, str, int]] = set()
    for places in first.values():
        for (one, i, line), (other, j, there) in pairwise(places):
            seen.add((one, i, other, j))
            overlapping = one == other and j - i < length
            if (one, i - 1, other, j - 1) not in seen and not overlapping:
                yield one, line, other, there


def sources() -> dict[str, str]:
    """The package's source files, kernels included; links are not followed."""
    return {
        file.relative_to(ROOT).as_posix(): file.read_text("utf-8")
        for folder in PACKAGES
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in {".py", ".metal", ".h", ".cpp", ".sh", ".jinja"}
        and not any((ROOT / parent).is_symlink() for parent in file.relative_to(ROOT).parents)
    }


def test_no_eight_lines_stand_in_two_places() -> None:
    found = [
        f"{one}:{line} = {other}:{there}"
        for one, line, other, there in repetitions(sources(), LONGEST)
        if frozenset({one, other}) not in KEPT
    ]
    assert found == []


def test_what_may_repeat_still_does() -> None:
    found = {frozenset({one, other}) for one, _, other, _ in repetitions(sources(), LONGEST)}
    assert set(KEPT) - found == set()


@pytest.mark.parametrize(("shared", "found"), [(7, 0), (8, 1), (20, 1)])
def test_a_repetition_is_found_once_however_long(shared: int, found: int) -> None:
    lines = [f"call({i})" for i in range(shared)]
    spaced = "\n\n# why\n".join(f"    {line}" for line in lines)
    texts = {"a": "\n".join(["a()", *lines, "b()"]), "b": spaced}
    assert len(list(repetitions(texts, LONGEST))) == found
