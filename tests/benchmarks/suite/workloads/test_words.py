"""Texts have exactly as many tokens as asked for, and outputs are steered to be the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.benchmarks.suite.workloads.words import BIAS, Words
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.testing import ByteTokenizer
from tests.benchmarks.toy_words import word_tokenizer


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["\n", " ", "\n\n"]))
def test_texts_have_as_many_tokens_as_asked_for_wherever_they_stand(
    words: Words, lengths: list[int], between: str
) -> None:
    texts = [words.text(n, f"seed {i}") for i, n in enumerate(lengths)]
    gaps = 0 if between == " " else len(lengths) - 1
    assert words.count(between.join(texts)) == sum(lengths) + gaps * words.count(between)


def test_a_seed_always_gives_the_same_text(words: Words) -> None:
    assert words.text(30, "a") == words.text(30, "a") != words.text(30, "b")


def test_a_prompt_is_always_steered_to_the_same_word(words: Words) -> None:
    [(token, bias)] = words.steer("a prompt").items()
    assert bias == BIAS
    assert words.steer("a prompt") == {token: BIAS}
    steered = {next(iter(words.steer(f"prompt {i}"))) for i in range(200)}
    assert len(steered) > 20


def test_under_a_grammar_the_word_may_stand_alone(words: Words) -> None:
    [spaced] = words.steer("a prompt")
    tokens = words.steer("a prompt", constrained=True)
    tokenizer = word_tokenizer()
    assert len(tokens) == 2
    assert spaced in tokens
    assert {tokenizer.decode([t]).strip() for t in tokens} == {tokenizer.decode([spaced]).strip()}


def test_a_tokenizer_without_words_is_refused() -> None:
    class Bytes(ByteTokenizer):
        def encode(self, text: str, add_special: bool = True) -> list[int]:
            return super().encode(text)

        def decode(self, ids: object, skip_special: bool = True, at_start: bool = True) -> str:
            return super().decode(list(ids))  # type: ignore[call-overload]

    with pytest.raises(BenchmarkError, match="has 0 words of four letters"):
        Words(Bytes())
