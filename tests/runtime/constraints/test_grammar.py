"""Grammars: masks, forced tokens and what they do in an engine."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from sgl_mlx.errors import InvalidParamsError, RequestAborted
from sgl_mlx.runtime.constraints.constraint import Constraint
from sgl_mlx.runtime.constraints.json_text import JsonText
from sgl_mlx.sampling import SamplingParams
from tests.runtime.constraints.constrained_fixtures import (
    allowed,
    compiler,
    constraint,
    decode,
    engine,
    figures,
    needs_model,
    sample,
)
from tests.runtime.constraints.corpus.schemas import record

pytestmark = needs_model

PERSON = json.dumps(
    record(
        {
            "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
            "occupation": {"enum": ["teacher", "engineer"]},
            "age": {"type": "integer", "minimum": 10, "maximum": 99},
        }
    )
)
FORCING: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"json_schema": '{"const": {"a long key": [1, 2, 3], "another": null}}'},
    {"json_schema": '{"enum": ["internationalisation", "internationalism"]}'},
    {"regex": r"The answer is (yes|no), because of [a-z]{3,9}\."},
    {"regex": r"https://www\.[a-z]{3,8}\.org/index\.html"},
    {"regex": r"\{\"score\": [0-9], \"comment\": \"(good|bad)\"\}"},
    {"regex": "(Monday|Tuesday|Wednesday) morning at (eight|nine) o'clock"},
    {"regex": "aaaaaaaaaaaaaaaaaaaaaaaa"},
    {"regex": "Straße (und|oder) Gäßchen"},
    {"grammar": 'start: "select " NAME " from " NAME ";"\nNAME: "users" | "orders"'},
    {"grammar": 'start: "(" start ")" | DIGIT\nDIGIT: /[0-9]/'},
    {"dtype": "bool"},
]
PROMPT = "Here is an example:\n"


def test_the_mask_covers_the_vocabulary_of_the_model() -> None:
    bits = 8 * len(constraint(regex="a+").allowed())
    assert bits >= engine()._model.vocabulary


@pytest.mark.parametrize("pattern", ["a{0,3}", "(ab|a)c?", "[0-9]{1,2}", "x(yz)*"])
def test_the_end_is_allowed_exactly_where_the_text_matches(pattern: str) -> None:
    ends = engine().tokenizer.eos_token_ids
    for seed in range(10):
        c, rng, tokens = constraint(regex=pattern), random.Random(seed), []
        for _ in range(6):
            choices = allowed(c)
            matches = re.fullmatch(pattern, decode(tokens)) is not None
            assert ends.isdisjoint(choices) != matches
            assert matches or not c.complete
            going_on = sorted(set(choices) - ends)
            if not going_on:
                break
            token = rng.choice(going_on)
            c.accept(token)
            tokens.append(token)


@pytest.mark.parametrize("grammar", FORCING, ids=str)
def test_each_forced_token_is_allowed_in_its_turn(grammar: dict[str, Any]) -> None:
    jumping, stepping = constraint(**grammar), constraint(**grammar)
    rng = random.Random(0)
    for _ in range(30):
        token = rng.choice(allowed(jumping))
        jumping.accept(token)
        stepping.accept(token)
        for forced in jumping.forced():
            assert forced in allowed(stepping)
            stepping.accept(forced)
        assert jumping.allowed() == stepping.allowed()
        if jumping.complete:
            break


def test_constraints_of_one_grammar_are_independent() -> None:
    first, second = constraint(regex="ab|cd"), constraint(regex="ab|cd")
    before = second.allowed()
    first.accept(allowed(first)[0])
    assert first.allowed() != before == second.allowed()


def test_a_grammar_is_compiled_once() -> None:
    constraint(regex="once{1,2}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler(), "_compile", None)
        assert compiler().has(SamplingParams(regex="once{1,2}"))
        constraint(regex="once{1,2}")


def test_forced_tokens_change_the_text_of_no_greedy_output_that_has_one_way() -> None:
    jumped = sample(PROMPT, FORCING, temperature=0, max_new_tokens=64)
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Constraint, JsonText):
            patch.setattr(kind, "forced", lambda self: [])
        stepped = sample(PROMPT, FORCING, temperature=0, max_new_tokens=64)
    same = [a["text"] == b["text"] for a, b in zip(jumped, stepped, strict=True)]
    figures.info(f"jump-forward: {sum(same)} of {len(same)} greedy texts are identical")
    assert sum(same) >= 10
    for answer, grammar in zip(jumped + stepped, FORCING * 2, strict=True):
        assert answer["meta_info"]["finish_reason"]["type"] == "stop", grammar
        if "regex" in grammar:
            assert re.fullmatch(grammar["regex"], answer["text"])
    assert all(a["meta_info"]["forced_tokens"] == 0 for a in stepped)


def test_forced_and_decoded_tokens_add_up() -> None:
    answers = sample(PROMPT, FORCING, temperature=1, seed=3, max_new_tokens=64)
    for answer in answers:
        info = answer["meta_info"]
        assert info["completion_tokens"] == info["forced_tokens"] + info["decoded_tokens"]
        assert info["completion_tokens"] == len(answer["output_ids"])
    forced = sum(a["meta_info"]["forced_tokens"] for a in answers)
    total = sum(a["meta_info"]["completion_tokens"] for a in answers)
    figures.info(f"forced: {forced} of {total} tokens")
    assert forced > total / 2


def test_rows_without_grammar_are_what_they_are_alone() -> None:
    free: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
    alone = engine().generate(PROMPT, free)
    mixed = sample(PROMPT, [free, *({**g, "max_new_tokens": 40} for g in FORCING), free])
    assert mixed[0]["output_ids"] == mixed[-1]["output_ids"] == alone["output_ids"]


def test_samples_under_grammar_depend_on_their_seed_alone() -> None:
    row = {"regex": "[a-z]{4,8} [a-z]{4,8}", "seed": 5, "n": 3, "temperature": 1.0}
    alone = engine().generate(PROMPT, row)
    assert len({a["text"] for a in alone}) > 1
    answers = sample(PROMPT, [{"temperature": 1, "max_new_tokens": 9}, row, {"regex": "[0-9]{9}"}])
    assert [a["text"] for a in answers[1:4]] == [a["text"] for a in alone]


def test_no_end_before_min_new_tokens_while_the_grammar_can_go_on() -> None:
    params = [{"regex": "[a-z ]*", "min_new_tokens": 5}, {"regex": "yes", "min_new_tokens": 5}]
    longer, forced = sample(PROMPT, params, temperature=0, max_new_tokens=20)
    assert longer["meta_info"]["completion_tokens"] >= 5
    assert forced["text"] == "yes"


def test_penalties_and_stop_strings_hold_under_a_grammar() -> None:
    rows = [
        {"regex": "(a|b| )*", "frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"regex": "[a-z]+: [0-9]{3} items", "stop": [":"]},
        {"regex": "[a-z]+: [0-9]{3} items", "stop": ["item"], "no_stop_trim": True},
    ]
    varied, trimmed, kept = sample(PROMPT, rows, temperature=0, max_new_tokens=24)
    assert re.fullmatch("(a|b| )*", varied["text"])
    assert re.fullmatch("[a-z]+", trimmed["text"])
    assert trimmed["meta_info"]["finish_reason"]["matched"] == ":"
    assert re.fullmatch("[a-z]+: [0-9]{3} item", kept["text"])


def test_grammars_exclude_each_other() -> None:
    with pytest.raises(InvalidParamsError, match="regex and dtype exclude each other"):
        engine().generate("x", {"regex": "a", "dtype": "int"})


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidParamsError, match=r"unknown dtype 'complex'.* int, float, bool, str"
    ):
        engine().generate("x", {"dtype": "complex"})


@pytest.mark.parametrize(
    "grammar", ['start: "a" b\nb: b', 'start: "a" ("b" | "c") d\nd: "x" d'], ids=["void", "endless"]
)
def test_a_dead_end_is_an_error_and_never_an_answer(grammar: str) -> None:
    with pytest.raises((RequestAborted, InvalidParamsError), match=r"nothing|limit|endless"):
        engine().generate("x", {"grammar": grammar, "max_new_tokens": 20})
    assert engine().generate("x", {"max_new_tokens": 1})["output_ids"]
