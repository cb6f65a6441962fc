"""The three methods of `select`, on log-probabilities worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.core import ChoiceScore, ChoiceScores, TokenLogprob
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.choices import (
    ChoicesDecision,
    ChoicesSamplingMethod,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_mlx.testing import ScriptedBackend


def scores(
    rows: dict[str, list[float]], alone: dict[str, list[float | None]] | None = None
) -> ChoiceScores:
    def tokens(values: Any) -> tuple[TokenLogprob, ...]:
        return tuple(TokenLogprob(value, i) for i, value in enumerate(values))

    return ChoiceScores(
        [
            ChoiceScore(text, tokens(row), tokens(alone[text]) if alone else None)
            for text, row in rows.items()
        ],
        4,
        0,
    )


def test_token_length_normalized_takes_the_highest_mean() -> None:
    # sums would prefer "short": -1.0 > -1.5
    decision = token_length_normalized.of(scores({"short": [-1.0], "long": [-1.2, -0.2, -0.1]}))
    assert decision.decision == "long"
    assert decision.meta_info["normalized_prompt_logprobs"] == [-1.0, pytest.approx(-0.5)]


def test_greedy_selection_takes_the_likeliest_token_first() -> None:
    # "long" has the better mean, but greedy decoding would never begin it
    rows = {"short": [-0.4, -3.0], "long": [-0.5, -0.1, -0.1]}
    assert token_length_normalized.of(scores(rows)).decision == "long"
    assert greedy_token_selection.of(scores(rows)).decision == "short"


def test_greedy_selection_goes_on_with_the_mean_of_an_option_that_ended() -> None:
    # alike at first; then "a" goes on with its mean -1.0, and "ab" with -0.5
    decision = greedy_token_selection.of(scores({"a": [-1.0], "ab": [-1.0, -0.5]}))
    assert decision.decision == "ab"
    assert decision.meta_info["greedy_logprob_matrix"] == [[-1.0, -1.0], [-1.0, -0.5]]


def test_a_choice_without_tokens_is_refused() -> None:
    # its mean would be 0, better than any
    with pytest.raises(ProgramError, match="'nothing' adds no token"):
        token_length_normalized.of(scores({"a": [-1.0], "nothing": []}))


@pytest.mark.parametrize(
    "method",
    [token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized],
)
def test_a_choice_given_twice_changes_nothing(method: ChoicesSamplingMethod) -> None:
    (a, b) = scores({"a": [-2.0], "b": [-1.0]}, {"a": [-3.0], "b": [-3.0]}).choices
    decision = method.of(ChoiceScores([a, b, b, a], 4, 0))
    assert decision.decision == "b"
    assert decision.meta_info["normalized_prompt_logprobs"] == [-2.0, -1.0, -1.0, -2.0]


def test_meta_info_has_sglangs_names() -> None:
    rows, alone = {"a": [-2.0], "b": [-1.0]}, {"a": [None], "b": [None]}
    common = {"normalized_prompt_logprobs", "input_token_logprobs", "output_token_logprobs"}
    usage = {"prompt_tokens", "cached_tokens"}
    own = {
        token_length_normalized: set(),
        greedy_token_selection: {"greedy_logprob_matrix"},
        unconditional_likelihood_normalized: {
            "unconditional_token_logprobs",
            "normalized_unconditional_prompt_logprobs",
        },
    }
    for method, names in own.items():
        meta = method.of(scores(rows, alone)).meta_info
        assert set(meta) == common | usage | names


def test_ties_go_to_the_first() -> None:
    for method in (token_length_normalized, greedy_token_selection):
        assert method.of(scores({"a": [-1.0], "b": [-1.0]})).decision == "a"


def test_unconditional_normalization_takes_what_the_prompt_made_likelier() -> None:
    rows = {"common": [-1.0, -1.0], "rare": [-2.0, -2.0]}
    alone: dict[str, list[float | None]] = {"common": [None, -1.0], "rare": [None, -6.0]}
    decision = unconditional_likelihood_normalized.of(scores(rows, alone))
    assert decision.decision == "rare"
    assert decision.meta_info["normalized_unconditional_prompt_logprobs"] == [-0.5, 1.0]


def test_unconditional_normalization_needs_its_logprobs() -> None:
    with pytest.raises(ValueError, match="needs unconditional logprobs"):
        unconditional_likelihood_normalized(
            choices=["a"],
            normalized_prompt_logprobs=[-1.0],
            input_token_logprobs=[[[-1.0, 0, None]]],
            output_token_logprobs=[[]],
        )


@pytest.mark.parametrize(
    ("method", "asks"),
    [
        (token_length_normalized, False),
        (greedy_token_selection, False),
        (unconditional_likelihood_normalized, True),
    ],
)
def test_only_one_method_asks_for_unconditional_logprobs(
    method: ChoicesSamplingMethod, asks: bool
) -> None:
    assert method.requires_unconditional_logprobs is asks


def test_methods_are_called_with_sglangs_keywords() -> None:
    decision = token_length_normalized(
        choices=["a", "b"],
        normalized_prompt_logprobs=[-2.0, -1.0],
        input_token_logprobs=[[[-2.0, 1, "a"]], [[-1.0, 2, "b"]]],
        output_token_logprobs=[[], []],
    )
    assert decision.decision == "b"
    assert decision.meta_info["output_token_logprobs"] == [[], []]


@given(
    choices=st.lists(st.text("abc", min_size=1), min_size=1, max_size=4, unique=True),
    data=st.data(),
    alone=st.booleans(),
)
def test_a_method_of_ones_own_decides(choices: list[str], data: st.DataObject, alone: bool) -> None:
    chosen = data.draw(st.sampled_from(choices))
    seen: dict[str, Any] = {}

    class Mine(ChoicesSamplingMethod):
        @property
        def requires_unconditional_logprobs(self) -> bool:
            return alone

        def __call__(self, *, choices: Any, **numbers: Any) -> ChoicesDecision:
            seen.update(numbers)
            return ChoicesDecision(decision=chosen, meta_info={"mine": 1})

    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.select("c", choices, choices_method=Mine())

    state = program.run(backend=ScriptedBackend())
    assert state["c"] == chosen
    assert state.get_meta_info("c")["mine"] == 1
    assert len(seen["input_token_logprobs"]) == len(choices)
    assert (seen["unconditional_token_logprobs"] is None) is not alone
