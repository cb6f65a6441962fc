"""Regular expressions mean what Python's `re` says, or are refused by name."""

from __future__ import annotations

import random
import re
import warnings

import pytest

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.constraints.python_regex import to_rust
from tests.runtime.constraints.walks import walk

KIND = "byte-level"
REFUSALS = r"not supported|at position \d+|nothing can match|too large|limit|too many"

READ_ALIKE = [
    *(r'{"name": "\w{1,8}"}', r"x{,3}y", "[a&&b]{4}", "[a-c&&b-d]{4}", "[[x]{3}", r"[a\]]{3}"),
    *(r"[A-Za-z0-9.,!?'\"-_<> ]{3,20}", "[a~~b]{3}", "[a||b]{3}", "[[:alpha:]]{3}", "[]a]{3}"),
    *("^(yes|no)$", "^yes|no$", r"\Ayes\Z", "(?m)^a$", r"\Z", "$", "(^a|b$)", "(?:)", "", "a|"),
    *("(?i)yes|no", "(?i:yes)!", "(?i)[a-c]{2}[^k]", "(?a)\\w{3}", "(?s).{3}", "(?x) a b # c"),
    *(r"\N{BULLET}x", r"\0", r"\07", r"\u00e9{2}", r"\x41\x42", "(?#note)ab", "(a|b)*?c"),
    *(r"[^\W\d_]{3}", r"[\d\s]{4}", r"\-\ \#\&\~x", r"\p{Lu}\p{Ll}{2}", r"[\p{Lu}0]{2}"),
]


def fullmatch(pattern: str, text: str) -> bool:
    """Python's own answer; its `re` knows no `\\p`."""
    if r"\p" in pattern:
        return len(text) in (2, 3)
    with warnings.catch_warnings(action="ignore"):
        return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize("pattern", READ_ALIKE)
def test_every_way_through_it_matches_as_python_reads_it(pattern: str) -> None:
    for seed in range(20):
        found = walk(KIND, random.Random(seed), regex=pattern)
        assert found is None or fullmatch(pattern, found), (pattern, found)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"(\w)\1", "back-reference"),
        (r"(?P<n>\d)-(?P=n)", "back-reference"),
        (r"(?=y)\w{3}", "look-ahead"),
        (r"(?!n)\w{3}", "negative look-ahead"),
        (r"(?<=a)b", "look-behind"),
        (r"a++b", "possessive"),
        (r"(?>ab|a)c", "atomic"),
        (r"(a)?(?(1)b|c)", "conditional"),
        (r"\bcat\b", r"\\b is not supported"),
        (r"a^b", r"\^ inside a pattern"),
        (r"(a$)+", r"\$ inside a pattern"),
        (r"[a--b]", "at position 1: bad character range a--"),
        ("\ud83d", "half a surrogate pair"),
        (r"\ud83d", "half a surrogate pair"),
        ("(" * 5000, r"too large or too deep|at position"),
    ],
)
def test_what_no_grammar_can_express_is_named(pattern: str, name: str) -> None:
    with pytest.raises(InvalidParamsError, match=name):
        walk(KIND, random.Random(0), regex=pattern)


ATOMS = [
    *("a", "b", ".", r"\d", r"\w", r"\s", r"\S", "[ab]", "[^a]", "[&&a]", "[a&&b]", "[[a]", "é"),
    *(r"[\w-]", "[a-]", "[]b]", r"[\]b]", "[a||b]", "[~~]", "{", "}", "{a", "a{,2}", "x{1,2}"),
    *("^", "$", r"\b", "(?i:k)", "(?i:[a-s])", "(?s:.)", "(?:a|b|)", "(b)", "(?=a)", "a++", r"\-"),
]


def test_random_patterns_are_read_as_python_reads_them_or_refused() -> None:
    outcomes = {"matched": 0, "refused": 0, "long": 0}
    for seed in range(1500):
        rng = random.Random(seed)
        parts = [
            rng.choice(ATOMS) + rng.choice(["", "", "*", "+", "?", "{2}", "{0,2}"])
            for _ in range(rng.randint(1, 4))
        ]
        pattern = rng.choice(["", "|"]).join(parts)
        try:
            found = walk(KIND, rng, regex=pattern)
        except InvalidParamsError as error:
            outcomes["refused" if re.search(REFUSALS, str(error)) else str(error)] += 1
            continue
        assert found is None or fullmatch(pattern, found), (pattern, found)
        outcomes["long" if found is None else "matched"] += 1
    assert outcomes["matched"] > 500
    assert outcomes["refused"] > 100


def test_a_search_keeps_its_anchors_and_reads_classes_narrowly() -> None:
    assert to_rust("^a$", search=True) == "^a$"
    assert to_rust(r"\d", search=True) == "[[0-9]]"
    assert to_rust(r"(?<year>\d)", search=True) == "(?:[[0-9]])"
    assert r"\p{Nd}" in to_rust(r"\D", search=True)
    assert r"\p{Nd}" in to_rust(r"[^\d]", search=True)
