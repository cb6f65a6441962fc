"""EBNF and GBNF mean in Lark what they say, or are refused by name."""

from __future__ import annotations

import json
import random
import re

import pytest

from sgl_mlx.errors import InvalidParamsError
from tests.runtime.constraints.walks import walk

KIND = "byte-level"

JSON = r"""
# a value of JSON, as a grammar for llama.cpp writes it
root  ::= object
value ::= object | array | string | number | "true" | "null"
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}"
array  ::= "[" ws ( value ("," ws value)* )? "]"
string ::= "\"" ( [^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\""
number ::= "-"? ("0" | [1-9] [0-9]{0,3})
ws ::= | " "
"""
BRACKETS = 'root ::= "[" (root | inner)? "]"\ninner ::= "(" root ")" | [a-c]+'


def texts(grammar: str, seeds: int = 40) -> list[str]:
    found = (walk(KIND, random.Random(seed), grammar=grammar) for seed in range(seeds))
    return [text for text in found if text is not None]


def test_ebnf_is_a_parameter_of_its_own() -> None:
    assert walk(KIND, random.Random(0), ebnf='root ::= "yes"') == "yes"
    with pytest.raises(InvalidParamsError, match="ebnf 'start: /a/': its first rule is not"):
        walk(KIND, random.Random(0), ebnf="start: /a/")
    with pytest.raises(InvalidParamsError, match="grammar and ebnf exclude each other"):
        walk(KIND, random.Random(0), ebnf='root ::= "a"', grammar="start: /a/")


def test_a_recursive_grammar_gives_its_sentences() -> None:
    written = texts(JSON, 150)
    assert len(written) > 20
    for text in written:
        assert isinstance(json.loads(text), dict)
    for text in texts(BRACKETS):
        while (shorter := re.sub(r"\[(?:|[a-c]+)\]|\(x\)", "x", text).replace("[x]", "x")) != text:
            text = shorter
        assert text == "x"


REGULAR = {
    'root ::= "yes" | "no"': "yes|no",
    'root ::= answer "!"\nanswer ::= "a-b" | [a-c]+': "(a-b|[a-c]+)!",
    'root ::= [a-z]{0,2} "ing"': "[a-z]{0,2}ing",
    "root ::= ('x' | 'yz'){2,3}": "(x|yz){2,3}",
    'root ::= "\\u00e9" [^a]{2}': "é[^a]{2}",
    'root ::= "tab\\t\\"quoted\\"" .?': 'tab\t"quoted".?',
    'root ::= item+\nitem ::= "- " [^\\r\\n]{1,3} "\\n"': "(- [^\r\n]{1,3}\n)+",
    "root ::= [a\\-c^]{3} [+*-]": "[a\\-c^]{3}[+*-]",
    'root ::= ("a" | ) "/"': "(a|)/",
    "root ::= a-b a_b\na-b ::= [0-9]\na_b ::= [x-z]": "[0-9][x-z]",
}


@pytest.mark.parametrize("grammar", REGULAR)
def test_a_grammar_without_recursion_is_exactly_its_regular_expression(grammar: str) -> None:
    written = texts(grammar)
    assert written
    for text in written:
        assert re.fullmatch(REGULAR[grammar], text), text


def random_rules(rng: random.Random) -> tuple[str, str]:
    """A grammar without recursion and the regular expression of its sentences."""
    atoms = [('"ab"', "ab"), ("[a-c]", "[a-c]"), ("[^x]", "[^x]"), ('"\\n"', "\n"), ('"."', r"\.")]
    regexes: dict[str, str] = {}
    rules: list[str] = []
    for name in ("last", "mid-dle", "root"):
        choices = [*atoms, *((used, f"(?:{regexes[used]})") for used in regexes)]
        branches = []
        for _ in range(rng.randint(1, 3)):
            repeats = ["", "", "?", "{2}", "{0,2}", "*"]
            row = [(*rng.choice(choices), rng.choice(repeats)) for _ in range(rng.randint(1, 3))]
            branches.append(
                (
                    " ".join(f"{item}{count}" for item, _, count in row),
                    "".join(f"(?:{regex}){count}" for _, regex, count in row),
                )
            )
        rules.append(f"{name} ::= " + " | ".join(b for b, _ in branches))
        regexes[name] = "|".join(f"(?:{r})" for _, r in branches)
    return "\n".join(reversed(rules)), regexes["root"]


def test_random_grammars_give_what_they_describe() -> None:
    ended = 0
    for seed in range(300):
        rng = random.Random(seed)
        grammar, regex = random_rules(rng)
        found = walk(KIND, rng, grammar=grammar)
        assert found is None or re.fullmatch(regex, found), (grammar, found)
        ended += found is not None
    assert ended > 150


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "grammar is empty"),
        ("  \n", "grammar is empty"),
        ("root ::= x", "no rule named x"),
        ('start ::= "a"', "no rule named root; its rules are start"),
        ('root ::= "a" (', "rule root: a parenthesis is not closed"),
        ('root ::= "a" )', r"rule root: unexpected '\)'"),
        ("root ::= *", r"rule root: nothing to repeat before '\*'"),
        ("root ::= [z-a]", "rule root: the range z-a runs backwards"),
        ("root ::= []", "rule root: an empty set"),
        ('root ::= "a\n\nb ::= "b"', "line 1: .* is not supported in EBNF"),
        ('root ::= "\\q"', r"rule root: the escape \\q is not supported"),
        ('root ::= (= "a") "b"', r"line 1: look-ahead"),
        ('root ::= "a"\nroot ::= "b"', "defines the rule root twice"),
        ("root ::= root", "nothing can match it"),
        ('begin: "a"', "start"),
    ],
)
def test_a_grammar_that_cannot_be_used_says_why(grammar: str, reason: str) -> None:
    with pytest.raises(InvalidParamsError, match=reason):
        walk(KIND, random.Random(0), grammar=grammar)
