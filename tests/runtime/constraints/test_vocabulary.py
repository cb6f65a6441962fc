"""The grammar engine and the tokenizer agree on every token, whatever kind of tokenizer it is."""

from __future__ import annotations

import json
import random
import re

import pytest
import tokenizers
from tokenizers import decoders, models

from sgl_mlx.errors import TokenizerError
from sgl_mlx.runtime.constraints.grammar import GrammarCompiler
from sgl_mlx.runtime.constraints.vocabulary import GrammarVocabulary, Vocabulary
from sgl_mlx.sampling import SamplingParams
from sgl_mlx.tokenizer import Tokenizer
from tests.runtime.constraints.generated import TEXTS, random_regex
from tests.runtime.constraints.walks import compiler, walk
from tests.tokenizer.synthetic import KINDS, tokenizer

PER_KIND = 400


def random_schema(rng: random.Random) -> str:
    words = rng.sample(TEXTS, 3)
    return json.dumps(
        rng.choice(
            [
                {"const": words[0]},
                {"enum": [words[0], {"k": words[1]}]},
                {
                    "type": "object",
                    "properties": {words[0]: {"enum": words}, words[1]: {"type": "boolean"}},
                    "required": words[:2],
                    "additionalProperties": False,
                },
                {"type": "array", "items": {"const": words[0]}, "maxItems": 2},
            ]
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_spells_the_same_to_the_grammar_engine(kind: str) -> None:
    ours = tokenizer(kind)
    theirs = GrammarVocabulary(ours, ours.vocab_size).engine
    marks = ours.eos_token_ids | {t for t in range(ours.vocab_size) if ours.is_special(t)}
    for token in range(ours.vocab_size):
        spelled = ours.token_bytes(token)
        if token in marks:
            assert theirs.is_special_token(token)
        elif b"\xff" not in spelled:
            assert theirs.decode_bytes([token]) == spelled


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_is_spelled_exactly_and_without_special_tokens(kind: str) -> None:
    vocabulary = Vocabulary(tokenizer(kind), tokenizer(kind).vocab_size)
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices([*TEXTS, "x", " "], k=rng.randint(1, 6)))
        ids = vocabulary(text)
        assert vocabulary.spell(ids) == text.encode()
        assert not set(ids) & set(vocabulary.special_token_ids)
        half = text.encode()[:-1]
        assert vocabulary.spell(vocabulary(half)) == half


@pytest.mark.parametrize("kind", KINDS)
def test_every_random_way_through_a_regex_matches_it(kind: str) -> None:
    ended = 0
    for seed in range(PER_KIND):
        rng = random.Random(f"{kind} {seed}")
        pattern = random_regex(rng)
        found = walk(kind, rng, regex=pattern)
        assert found is None or re.fullmatch(pattern, found), (pattern, found)
        ended += found is not None
    assert ended > PER_KIND / 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_random_way_through_a_schema_is_json_of_its_values(kind: str) -> None:
    ended = 0
    for seed in range(PER_KIND // 4):
        rng = random.Random(f"{kind} {seed}")
        schema = random_schema(rng)
        found = walk(kind, rng, json_schema=schema)
        if found is not None:
            value, rules = json.loads(found), json.loads(schema)
            assert value == rules.get("const", value)
            assert value in rules.get("enum", [value])
            ended += 1
    assert ended > PER_KIND / 16


def test_a_grammar_names_added_tokens_whether_they_are_special_or_not() -> None:
    for name in ("<tool_call>", "<think>"):
        token = tokenizer("added").backend.token_to_id(name)
        constraint = compiler("added").constraint(SamplingParams(grammar=f'start: {name} "x"'))
        assert constraint is not None
        assert constraint.forced()[0] == token


def test_a_model_without_an_end_token_can_still_finish() -> None:
    ours = Tokenizer(KINDS["byte-level"]())
    constraint = GrammarCompiler(ours, ours.vocab_size).constraint(SamplingParams(regex="a|b"))
    assert constraint is not None
    constraint.accept(ours.encode("a")[0])
    constraint.forced()
    assert constraint.complete


def test_a_vocabulary_that_its_decoder_does_not_fit_is_refused() -> None:
    letters = {c: i for i, c in enumerate("abcdefgh")}
    backend = tokenizers.Tokenizer(models.BPE(letters, []))
    backend.decoder = decoders.Replace("b", " ")
    for letter in "cdefgh":
        backend.add_tokens([f"▁{letter}"])
    broken = Tokenizer(backend)
    broken._speller.update(dict.fromkeys(range(broken.vocab_size), b"zz"))
    with pytest.raises(TokenizerError, match="does not fit its vocabulary"):
        GrammarVocabulary(broken, broken.vocab_size)
