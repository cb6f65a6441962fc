"""JSON under a schema: no key twice, no number without end, and neither leads to a dead end."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.constraints.json_place import Place
from sgl_mlx.runtime.constraints.json_text import MOST_DIGITS
from sgl_mlx.sampling import SamplingParams
from tests.runtime.constraints.walks import compiler, walk
from tests.tokenizer.synthetic import tokenizer

KINDS = ("byte-level", "metaspace", "unigram")
LETTERS = ["a", "b", "ab", "aba", "b.", "é", '"', "\\\\", "n", "日"]
VALUES: list[Any] = [{"const": 1}, {"type": "boolean"}, {"enum": ["a,b", '"', "c"]}]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), keys
    return dict(pairs)


def random_object(rng: random.Random, depth: int = 1) -> dict[str, Any]:
    """An object whose further keys are of a few patterns, so that they may be used up."""
    names = rng.sample(LETTERS, rng.randint(1, 3))
    ending = rng.choice(["", "", "", "[ab]?", "x*"])
    inner = random_object(rng, depth - 1) if depth and rng.random() < 0.4 else rng.choice(VALUES)
    made: dict[str, Any] = {
        "type": "object",
        "patternProperties": {f"^(?:{'|'.join(names)}){ending}$": inner},
        "additionalProperties": False,
    }
    if rng.random() < 0.4:
        made["properties"] = {"p": rng.choice(VALUES), "q": rng.choice(VALUES)}
        made["required"] = rng.choice([[], ["p"], ["q"], ["p", "q"]])
    if rng.random() < 0.5 and len(made.get("required", "pq")) == 2:  # else the engine refuses it
        made["maxProperties"] = rng.randint(3, 5)
    return made


def test_no_key_is_written_twice_and_no_object_comes_to_a_dead_end() -> None:
    ended = several = 0
    for seed in range(400):
        rng = random.Random(seed)
        schema = random_object(rng)
        if rng.random() < 0.3:
            schema = {"type": "array", "items": schema, "maxItems": 2}
        text = walk(rng.choice(KINDS), rng, json_schema=json.dumps(schema))
        if text is not None:
            ended += 1
            value = json.loads(text, object_pairs_hook=unique)
            several += isinstance(value, dict) and len(value) > 1
    assert ended > 200
    assert several > 60


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_ends_when_every_key_is_used(kind: str) -> None:
    schema = {
        "type": "object",
        "patternProperties": {"^(a|ab|b)$": {"const": 1}},
        "additionalProperties": False,
    }
    sizes = set()
    for seed in range(60):
        text = walk(kind, random.Random(seed), json_schema=json.dumps(schema))
        assert text is not None
        sizes.add(len(json.loads(text, object_pairs_hook=unique)))
    assert max(sizes) == 3


def test_more_keys_than_there_are_is_a_dead_end_and_no_key_written_twice() -> None:
    schema = {
        "type": "object",
        "patternProperties": {"^(a|b)$": {"const": 1}},
        "additionalProperties": False,
        "minProperties": 3,
    }
    with pytest.raises(AssertionError, match="each key that the schema leaves"):
        walk("byte-level", random.Random(0), json_schema=json.dumps(schema))


# -- numbers --------------------------------------------------------------------------------------


def greedy_for_digits(kind: str, schema: Any) -> str:
    """The text of a model that writes a digit wherever it may, else the first allowed token."""
    constraint = compiler(kind).constraint(SamplingParams(json_schema=json.dumps(schema)))
    assert constraint is not None
    ours, tokens = tokenizer(kind), list[int]()
    for _ in range(300):
        bits = np.unpackbits(np.frombuffer(constraint.allowed(), np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits).tolist()
        assert constraint.error is None
        digits = [t for t in allowed if re.fullmatch(r"[0-9]+", ours.token_text(t))]
        further = [t for t in allowed if re.fullmatch(r"[.eE+-]", ours.token_text(t))]
        token = (digits or further or allowed)[-1]
        if token in ours.eos_token_ids:
            return ours.decode(tokens, at_start=False)
        constraint.accept(token)
        tokens += [token, *constraint.forced()]
        if constraint.complete:
            return ours.decode(tokens, at_start=False)
    raise AssertionError(f"no end: {ours.decode(tokens, at_start=False)}")


NUMBERS: list[Any] = [
    *({"type": "number"}, {"type": "integer"}, {"type": ["number", "null"]}),
    *({"type": "number", "minimum": 0}, {"type": "integer", "minimum": -5}),
    *({"type": "number", "minimum": -1, "maximum": 1}, {"type": "number", "multipleOf": 0.5}),
    *({"type": "integer", "multipleOf": 7}, {"type": "number", "exclusiveMaximum": 2.5}),
    *({"type": "array", "items": {"type": "number"}, "maxItems": 3},),
    {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "integer"}}},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", NUMBERS, ids=json.dumps)
def test_no_number_is_written_without_end(kind: str, schema: Any) -> None:
    schema = {**schema, "additionalProperties": False} if "properties" in schema else schema
    text = greedy_for_digits(kind, schema)
    json.loads(text)
    for run in re.findall(r"[0-9]+", re.sub(r"[eE][+-]?[0-9]+", "", text)):
        assert len(run) <= MOST_DIGITS + 6 * ("multipleOf" in schema)  # to the next multiple
    for number in re.findall(r"[-+.eE0-9]+", text):
        assert math.isfinite(float(number))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["time", "date-time", "duration"])
def test_no_fraction_of_a_second_is_written_without_end(kind: str, name: str) -> None:
    text = greedy_for_digits(kind, {"type": "string", "format": name})
    assert max(map(len, re.findall(r"[0-9]+", text))) <= 6


@pytest.mark.parametrize(("name", "most"), [("int32", 2**31), ("int64", 2**63), ("uint8", 256)])
def test_a_format_of_integers_bounds_them(name: str, most: int) -> None:
    text = greedy_for_digits("byte-level", {"type": "integer", "format": name})
    assert -most <= int(text) < most


@pytest.mark.parametrize("value", [10**30, 0.1 + 1e-9, -(10**25), [5, 10**40]])
def test_a_number_that_the_schema_asks_for_is_written_whole(value: Any) -> None:
    assert json.loads(greedy_for_digits("byte-level", {"const": value})) == value


# -- places ---------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def pieces(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    while raw:
        size = rng.randint(1, 4)
        yield raw[:size]
        raw = raw[size:]


@settings(deadline=None, max_examples=150)
@given(values, st.booleans(), st.integers(0, 1000))
def test_a_text_of_json_is_read_however_it_is_cut(value: Any, ascii: bool, seed: int) -> None:
    raw = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    place = Place()
    for piece in pieces(raw, random.Random(seed)):
        before = (place.keys, place.begun, place.digits)
        ahead = place.after(piece)
        assert (place.keys, place.begun, place.digits) == before
        place.read(piece)
        assert (place.keys, place.begun, place.digits) == (ahead.keys, ahead.begun, ahead.digits)
    assert not place.repeated
    assert not place.in_string
    assert not place.has_keys


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ('{"a": 1, "a"', True),
        (r'{"a": 1, "\u0061"', True),
        (r'{"é": 1, "\u00e9"', True),
        ('{"a": {"a": 1}, "b"', False),
        ('{"a": ["a", "a"], "b": "a"', False),
        ('[{"a": 1}, {"a"', False),
        (r'{"a\"": 1, "a\""', True),
        ('{"a": 1, "ab"', False),
    ],
)
def test_a_repeated_key_is_seen_however_it_is_spelled(text: str, repeated: bool) -> None:
    for size in range(1, 5):
        place = Place()
        for i in range(0, len(text.encode()), size):
            place.read(text.encode()[i : i + size])
        assert place.repeated == repeated


@pytest.mark.parametrize(("text", "run"), [("1.5", (1, False)), ("-12e", (0, True))])
def test_digits_are_counted(text: str, run: tuple[int, bool]) -> None:
    for more, found in (("", run), ("345", (run[0] + 3, run[1])), ("]", (0, False))):
        place = Place().after((text + more).encode())
        assert (place.digits, place.exponent) == found
