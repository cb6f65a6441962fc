"""`select` computes the prompt once and of each choice only its own tokens."""

from __future__ import annotations

import pytest

from sgl_mlx.core import ChoiceScores, Text
from sgl_mlx.errors import InvalidParamsError
from tests.runtime.constraints.constrained_fixtures import engine, figures, needs_model

pytestmark = needs_model

ENDINGS = [
    " the old man walked slowly down the hill to the river and watched the boats go by again",
    " a young woman found seven small stones near the lake and took them home with her then",
    " some people like to read long books in winter when the nights are dark and very cold too",
    " no one had ever seen such a bright light in the sky over the quiet town before that day",
]


def prefix(topic: str) -> str:
    return f"Notes about {topic}.\n" + "The day was long and the road was dusty. " * 99 + "Then"


def computed() -> int:
    stats = engine().get_server_info()["stats"]
    return int(stats["computed_tokens"] + stats["decode_tokens"])


def cost(prompt: str, choices: list[str]) -> tuple[int, ChoiceScores]:
    before = computed()
    scores = engine().score((Text(prompt),), choices).result()
    return computed() - before, scores


def test_four_endings_over_a_long_prefix_cost_the_prefix_once() -> None:
    prompt = prefix("travel")
    length = len(engine().tokenizer.encode(prompt))
    own = sum(len(engine().tokenizer.encode(e, add_special=False)) for e in ENDINGS)
    first, scores = cost(prompt, ENDINGS)
    again, repeated = cost(prompt, ENDINGS)
    figures.info(f"select: prefix {length}, endings {own}; computed {first} first, {again} after")
    assert length > 900
    assert first <= length + own + 8
    assert again <= own + 8
    for a, b in zip(scores.choices, repeated.choices, strict=True):
        assert sum(t.logprob or 0 for t in a.tokens) == pytest.approx(
            sum(t.logprob or 0 for t in b.tokens), abs=1e-3
        )


def test_a_prefix_that_was_generated_on_before_is_not_computed_again() -> None:
    prompt = prefix("music")
    engine().generate(prompt, {"max_new_tokens": 2, "temperature": 0})
    own = sum(len(engine().tokenizer.encode(e, add_special=False)) for e in ENDINGS)
    assert cost(prompt, ENDINGS)[0] <= own + 8


def test_equal_choices_have_equal_scores() -> None:
    _, scores = cost("The sky is", [" blue", " green", " blue"])
    first, _, third = scores.choices
    assert first.tokens[0].logprob == pytest.approx(third.tokens[0].logprob, abs=1e-4)


def test_a_choice_that_begins_another_is_scored_in_its_own_tokens() -> None:
    _, scores = cost("She lives in New", [" York", " York City"])
    short, long = scores.choices
    assert len(short.tokens) < len(long.tokens)
    assert short.tokens[0].token_id == long.tokens[0].token_id
    assert short.tokens[0].logprob == pytest.approx(long.tokens[0].logprob, abs=1e-4)


@pytest.mark.parametrize("choices", [[], [""], [" blue", ""]])
def test_choices_must_not_be_empty(choices: list[str]) -> None:
    with pytest.raises(InvalidParamsError, match="non-empty"):
        engine().score((Text("The sky is"),), choices)


@pytest.mark.parametrize("choice", ["\u200b", "\x00", "<|im_end|>", "é", "\ud83d\ude00"[:0] or " "])
def test_odd_choices_have_scores(choice: str) -> None:
    _, scores = cost("The sky is", [choice, " blue"])
    assert all(c.tokens for c in scores.choices)
    assert all(t.logprob is not None and t.logprob <= 0 for c in scores.choices for t in c.tokens)


def test_a_choice_that_merges_with_the_prompt_is_scored_as_the_whole_text_is() -> None:
    _, scores = cost("See http:", ["//", " x"])
    whole = engine().tokenizer.encode("See http://")
    spelled = [t.token_id for t in scores.choices[0].tokens]
    assert whole[-len(spelled) :] == spelled
