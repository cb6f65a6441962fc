"""The least that must be computed, by hand and against the engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.benchmarks.suite.optimum import Asked, Optimum


def unique(*asked: Asked) -> int:
    found = Optimum.of(asked)
    assert found is not None
    return found.unique


def test_a_shared_prefix_is_computed_once() -> None:
    assert unique(Asked((1, 2, 3, 4), ()), Asked((1, 2, 3, 5), ())) == 5


def test_what_was_generated_is_not_computed_but_for_its_last_token() -> None:
    first = Asked((1, 2), (7, 8, 9))
    assert unique(first, Asked((1, 2, 7, 8, 9, 4), ())) == 2 + 2  # the 9 and the 4


def test_of_the_same_prompt_again_one_token_is_computed_unless_no_logits_are_wanted() -> None:
    assert unique(Asked((1, 2, 3), ()), Asked((1, 2, 3), ())) == 3 + 1
    assert unique(Asked((1, 2, 3), (), scored=True), Asked((1, 2, 3), (), scored=True)) == 3


def test_there_is_none_when_a_prompt_is_more_than_tokens() -> None:
    assert Optimum.of([Asked((1,), ()), None]) is None


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=8))
def test_without_outputs_it_is_the_number_of_distinct_prefixes(
    prompts: list[tuple[int, ...]],
) -> None:
    found = unique(*(Asked(prompt, (), scored=True) for prompt in prompts))
    assert found == len({prompt[:n] for prompt in prompts for n in range(1, len(prompt) + 1)})
