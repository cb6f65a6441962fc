"""Every output under a schema validates, every output under a regex matches: 100 %."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from typing import Any

import jsonschema
import pytest

from sgl_mlx.errors import InvalidParamsError
from tests.runtime.constraints.constrained_fixtures import (
    constraint,
    figures,
    needs_model,
    sample,
    walk,
)
from tests.runtime.constraints.corpus import regexes, schemas

pytestmark = needs_model

# its "time" is %H:%M:%S; RFC 3339 wants fractions and an offset
FORMATS = jsonschema.FormatChecker(set(jsonschema.FormatChecker.checkers) - {"time"})


def validate(text: str, schema: str) -> None:
    """Numbers as decimals: in binary 0.07 is no multiple of 0.01."""
    rules: Any = json.loads(schema, parse_float=Decimal)
    validator = jsonschema.Draft202012Validator(rules, format_checker=FORMATS)
    validator.validate(json.loads(text, parse_float=Decimal))


def check_all(kind: str, texts: list[str], prompt: str) -> dict[str, int]:
    """One sample of the model for each; how many ended by themselves and how many were cut."""
    params = [{kind: text, "seed": i} for i, text in enumerate(texts)]
    answers = sample(prompt, params, max_new_tokens=96, temperature=1.0)
    counts = {"stop": 0, "length": 0}
    for text, answer in zip(texts, answers, strict=True):
        ended = answer["meta_info"]["finish_reason"]["type"]
        counts[ended] += 1
        if ended == "stop":
            check(kind, text, answer["text"])
    figures.info(f"{kind}: {len(texts)} in the corpus, {counts}")
    return counts


def check(kind: str, grammar: str, text: str) -> None:
    if kind == "json_schema":
        validate(text, grammar)
    else:
        assert re.fullmatch(grammar, text), (grammar, text)


def test_whatever_the_model_writes_under_a_schema_validates() -> None:
    texts = [json.dumps(schema) for schema in schemas.supported()]
    assert len(texts) >= 300
    assert check_all("json_schema", texts, "A random value: ")["length"] == 0


def test_whatever_the_model_writes_under_a_regex_matches() -> None:
    texts = regexes.supported()
    assert len(texts) >= 200
    assert check_all("regex", texts, "A random string: ")["length"] == 0


@pytest.mark.parametrize("kind", ["json_schema", "regex"])
def test_any_way_through_a_grammar_ends_in_what_it_describes(kind: str) -> None:
    corpus = map(json.dumps, schemas.supported()) if kind == "json_schema" else regexes.supported()
    for text in corpus:
        for seed in range(3):
            found = walk(constraint(**{kind: text}), random.Random(seed))
            assert found is not None, text
            check(kind, text, found)


@pytest.mark.parametrize("schema", schemas.UNSUPPORTED + schemas.UNSATISFIABLE, ids=json.dumps)
def test_a_schema_that_cannot_be_met_is_refused_before_generation(schema: Any) -> None:
    with pytest.raises(InvalidParamsError, match=r"^json_schema '"):
        sample("x", [{"json_schema": schema}])


@pytest.mark.parametrize("pattern", regexes.UNSUPPORTED + regexes.UNSATISFIABLE)
def test_a_regex_that_cannot_be_met_is_refused_before_generation(pattern: str) -> None:
    with pytest.raises(InvalidParamsError, match=r"^regex "):
        sample("x", [{"regex": pattern}])
