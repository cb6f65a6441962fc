"""Random constraints with an oracle each, for tests over every kind of tokenizer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import jsonschema

from tests.runtime.constraints.corpus import regexes, schemas
from tests.tokenizer.synthetic import FOREIGN, SPECIALS, TOOLS

TEXTS = [
    *SPECIALS,
    *TOOLS,
    *FOREIGN,
    "<s>bold</s>",
    "a b",
    "  x",
    "é",
    "日本語",
    "\n",
    "▁",
    "tool ",
]
ATOMS = ["[a-c]", r"\d", "[<a-z>_|]", r"[^\W\d_]", ".", "(?:yes|no)", "[日本é]", r"\s", r"\w"]
REPEATS = ["", "", "?", "{2}", "{1,3}", "*", "+"]


class Case(NamedTuple):
    """One constraint, and what raises or is false for a text that does not match it."""

    params: dict[str, str]
    matches: Callable[[str], Any]


def random_case(rng: random.Random) -> Case:
    """A regex, a schema, a grammar in Lark or in EBNF, or a dtype."""
    return rng.choice([regex_case, regex_case, schema_case, schema_case, lark_case, ebnf_case])(rng)


def random_regex(rng: random.Random) -> str:
    """Texts of added and end tokens among classes and repeats."""

    def part() -> str:
        text = rng.random() < 0.6
        atom = f"(?:{re.escape(rng.choice(TEXTS))})" if text else rng.choice(ATOMS)
        return atom + rng.choice(REPEATS)

    branches = ["".join(part() for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 2))]
    return "|".join(branches)


def regex_case(rng: random.Random) -> Case:
    pattern = random_regex(rng) if rng.random() < 0.7 else rng.choice(regexes.supported())
    return Case({"regex": pattern}, lambda text: re.fullmatch(pattern, text))


def schema_case(rng: random.Random) -> Case:
    schema = random_schema(rng) if rng.random() < 0.7 else rng.choice(schemas.supported())

    def valid(text: str) -> bool:
        json.loads(text, object_pairs_hook=_unique)
        rules = json.loads(json.dumps(schema), parse_float=Decimal)  # in binary 0.07 is no multiple
        value: Any = json.loads(text, parse_float=Decimal)
        jsonschema.Draft202012Validator(rules).validate(value)
        return True

    return Case({"json_schema": json.dumps(schema)}, valid)


def random_schema(rng: random.Random, depth: int = 2) -> Any:
    words = rng.sample(TEXTS, 3)
    flat: list[Any] = [
        *({"const": words[0]}, {"enum": [words[0], {"k": words[1]}, 3]}, {"type": "boolean"}),
        {"type": "string", "maxLength": rng.randint(0, 5)},
        {"type": "integer", "minimum": -9, "maximum": rng.choice([-3, 8, 250])},
        {"type": "number"},
    ]
    if not depth or rng.random() < 0.3:
        return rng.choice(flat)
    inner = random_schema(rng, depth - 1)
    named = {words[0]: inner, words[1]: random_schema(rng, depth - 1)}
    nested: list[Any] = [
        {"type": "object", "properties": named, "required": words[:2]} | _CLOSED,
        {"type": "object", "properties": named, "required": words[:1]} | _CLOSED,
        {"type": "object", "patternProperties": {f"^({'|'.join('ab')})$": inner}} | _CLOSED,
        {"type": "array", "items": inner, "minItems": rng.randint(0, 1), "maxItems": 2},
        {"anyOf": [inner, {"type": "null"}]},
    ]
    return rng.choice(nested)


_CLOSED = {"additionalProperties": False}


def lark_case(rng: random.Random) -> Case:
    """Rules over texts and classes; each sentence is one of a regular expression."""
    pieces = [(json.dumps(t, ensure_ascii=False), re.escape(t)) for t in rng.sample(TEXTS, 3)]
    pieces = [(lark, regex) for lark, regex in pieces if "\\" not in lark] or [('"x"', "x")]
    pieces += [("/[0-9]{1,3}/", "[0-9]{1,3}"), ("/[a-c]/", "[a-c]")]
    rules, regex = [], []
    for _ in range(rng.randint(1, 3)):
        row = [rng.choice(pieces) for _ in range(rng.randint(1, 3))]
        rules.append(" ".join(lark for lark, _ in row))
        regex.append("".join(part for _, part in row))
    return _sentences("grammar", "start: " + " | ".join(rules), regex)


def ebnf_case(rng: random.Random) -> Case:
    pieces = [(json.dumps(t), re.escape(t)) for t in rng.sample(TEXTS, 4) if t.isascii()]
    pieces += [("[0-9]", "[0-9]"), ("[^a\\n]", "[^a\n]"), ("[a-c<]", "[a-c<]")]
    rules, regex = [], []
    for _ in range(rng.randint(1, 3)):
        row = [(*rng.choice(pieces), rng.choice(["", "", "?", "{2}", "*"])) for _ in range(3)]
        rules.append(" ".join(f"({ebnf}){count}" for ebnf, _, count in row))
        regex.append("".join(f"(?:{part}){count}" for _, part, count in row))
    return _sentences("ebnf", "root ::= " + " | ".join(rules), regex)


def _sentences(kind: str, grammar: str, regex: list[str]) -> Case:
    pattern = "|".join(f"(?:{branch})" for branch in regex)
    return Case({kind: grammar}, lambda text: re.fullmatch(pattern, text))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"a key stands twice: {keys}"
    return dict(pairs)
