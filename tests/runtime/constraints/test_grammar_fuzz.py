"""Thousands of random schemas, regexes and grammars, most of them bad: nothing breaks."""

from __future__ import annotations

import json
import random
import re
import resource
import string
import sys
import time
from typing import Any

import pytest

from sgl_mlx.errors import InvalidParamsError, RequestAborted
from tests.runtime.constraints.constrained_fixtures import (
    constraint,
    engine,
    figures,
    needs_model,
    walk,
)
from tests.runtime.constraints.corpus import regexes

pytestmark = needs_model

KEYWORDS: dict[str, list[Any]] = {
    "type": ["null", "boolean", "integer", "number", "string", "array", "object", "nope", [], 3],
    "enum": [[], [1, "a", None], [{}], "no list", [1e308, -0.0]],
    "const": [None, 0, "x", [1, {"a": []}], 10**30],
    "minimum": [-5, 0, 2.5, 1e30, "low"],
    "maximum": [-7, 3, 100, -1e30],
    "exclusiveMinimum": [0, True, 4],
    "multipleOf": [0, -1, 2, 0.1, 1e-12, 7],
    "minLength": [0, 3, -1, 10**9],
    "maxLength": [0, 2, 5, 1.5],
    "pattern": ["^a+$", "(", "(a+)+$", "^\\d{2}$", "", "[^", "^(?:a?){40}a{40}$"],
    "format": ["date", "uuid", "ipv6", "nope", 5],
    "minItems": [0, 2, 10**7, -3],
    "maxItems": [0, 1, 3, "x"],
    "uniqueItems": [True, False],
    "required": [["a"], ["a", "b", "z"], [], "a", [1]],
    "additionalProperties": [False, True],
    "minProperties": [0, 1, 9],
    "$ref": ["#", "#/$defs/a", "#/nowhere", "https://example.com", "#/$defs/b", 1],
}
NESTING = ("items", "additionalProperties", "not", "if", "then", "contains", "propertyNames")
NESTING_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
NESTING_MAPS = ("properties", "patternProperties", "$defs", "dependentSchemas")

ENDLESS = ["start: /a+/ /a+/", 'start: "x" /a+/ "a"', 'start: X a\nX: "a" "a"*\na: "a"']
"""A greedy terminal takes whatever could complete the sentence."""


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    if rng.random() < 0.05:
        return rng.choice([True, False, {}, None, 7, "schema", []])
    names = rng.sample(list(KEYWORDS), rng.choice([1, 1, 2, 3]))
    schema = {name: rng.choice(KEYWORDS[name]) for name in names}
    if depth and rng.random() < 0.7:
        schema[rng.choice(NESTING)] = random_schema(rng, depth - 1)
    if depth and rng.random() < 0.5:
        schema[rng.choice(NESTING_LISTS)] = [random_schema(rng, depth - 1) for _ in range(2)]
    if depth and rng.random() < 0.6:
        schema[rng.choice(NESTING_MAPS)] = {k: random_schema(rng, depth - 1) for k in "ab"}
    return schema


def random_regex(rng: random.Random, depth: int = 4) -> str:
    if rng.random() < 0.1:
        return "".join(rng.choices("ab()[]{}|*+?.^$\\-,:=!<>é\n\0&~1", k=rng.randint(1, 12)))
    if not depth or rng.random() < 0.3:
        return rng.choice(
            ["a", "bc", ".", r"\w", r"[^a]", r"\d", "[a-z]", r"\b", "^", "$", "é", ""]
        )
    inner = random_regex(rng, depth - 1)
    other = random_regex(rng, depth - 1)
    repeat = rng.choice(["*", "+", "?", "{2}", "{0,50}", "{1000}", "*?", "{3,1}", "{99999}"])
    return rng.choice([inner + other, f"(?:{inner}|{other})", f"({inner}){repeat}", f"(?={inner})"])


def random_grammar(rng: random.Random) -> str:
    names = ["start", *rng.sample(["a", "b", "C", "D"], rng.randint(0, 4))]
    atoms = [*names[1:], '"x"', '"yz"', "/[0-9]+/", "/(a+)+/", '""', "/b|ab/"]
    if rng.random() < 0.3:
        atoms += ["start", "/(/", "missing", "<|im_end|>"]

    def body() -> str:
        return " ".join(
            a + rng.choice(["", "", "*", "+", "?", "{2,3}"]) for a in rng.choices(atoms, k=3)
        )

    rules = [f"{name}: " + " | ".join(body() for _ in range(rng.randint(1, 3))) for name in names]
    if rng.random() < 0.1:
        rules.append("".join(rng.choices(string.printable, k=20)))
    return "\n".join(rules)


def random_params(rng: random.Random) -> dict[str, str]:
    kind = rng.choice(["json_schema", "regex", "grammar"])
    if kind == "json_schema":
        return {kind: json.dumps(random_schema(rng))}
    return {kind: (random_regex(rng) or "a") if kind == "regex" else random_grammar(rng)}


def try_out(params: dict[str, str], seed: int) -> str:
    """Compile and walk; what became of it."""
    try:
        text = walk(constraint(**params), random.Random(seed), limit=12)
    except InvalidParamsError:
        return "refused"
    except RequestAborted:
        return "dead end"
    if text is not None and "regex" in params:
        assert_as_python_reads(params["regex"], text)
    return "unfinished" if text is None else "ended"


def peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def assert_as_python_reads(pattern: str, text: str) -> None:
    assert len(pattern) > 60 or re.fullmatch(pattern, text), (pattern, text)


def test_random_grammars_are_refused_or_followed_and_leave_nothing_behind() -> None:
    counts: dict[str, int] = {}
    slowest, before = 0.0, 0
    for seed in range(2400):
        started = time.process_time()
        outcome = try_out(random_params(random.Random(seed)), seed)
        slowest = max(slowest, time.process_time() - started)
        counts[outcome] = counts.get(outcome, 0) + 1
        if seed == 1200:
            before = peak_mib()
    grown = peak_mib() - before
    figures.info(f"2400 random grammars: {counts}, slowest {slowest:.2f} s, +{grown:.0f} MiB")
    assert min(counts[name] for name in ("refused", "ended", "unfinished")) > 50
    assert grown < 300


@pytest.mark.parametrize("grammar", ENDLESS)
def test_a_grammar_that_forces_text_without_end_is_followed_token_by_token(grammar: str) -> None:
    assert walk(constraint(grammar=grammar), random.Random(0), limit=20) is None


@pytest.mark.parametrize("pattern", regexes.CATASTROPHIC)
def test_a_catastrophic_regex_is_followed_like_any_other(pattern: str) -> None:
    text = walk(constraint(regex=pattern), random.Random(0), limit=40)
    assert text is None or re.fullmatch(r"[\s\S]*", text)


def test_the_engine_survives_batches_of_bad_grammars() -> None:
    usual = {"temperature": 0, "max_new_tokens": 4}
    expected = engine().generate("The capital of France is", usual)["text"]
    outcomes = []
    for seed in range(4000, 4120):
        try:
            params = {**random_params(random.Random(seed)), "max_new_tokens": 4, "seed": seed}
            outcomes.append(engine().generate("x", params)["meta_info"]["finish_reason"]["type"])
        except (InvalidParamsError, RequestAborted) as error:
            outcomes.append(type(error).__name__)
    assert {"stop", "length", "InvalidParamsError"} <= set(outcomes)
    assert engine().generate("The capital of France is", usual)["text"] == expected
    stats = engine().get_server_info()["stats"]
    assert stats["running"] == stats["waiting"] == 0
