"""Draft lengths maximise expected tokens per second."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.speculation import policy
from sgl_mlx.runtime.speculation.acceptance import Acceptance
from sgl_mlx.runtime.speculation.costs import Costs, curve
from sgl_mlx.runtime.speculation.policy import Guess, Step, lengths

guesses = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(Guess, st.integers(1, 3), st.floats(0.05, 0.99)),
    max_size=3,
)
prices = st.lists(st.floats(0.1, 3), min_size=12, max_size=12)


@given(guesses, prices, st.floats(0.5, 4), st.integers(1, 4))
def test_no_other_lengths_promise_a_better_rate(
    found: dict[str, Guess], prices: list[float], seconds: float, sampled: int
) -> None:
    cumulative = [sum(prices[: i + 1]) for i in range(len(prices))]
    plain = Step(sampled, sampled, seconds)

    def rate(chosen: dict[str, int]) -> float:
        if not any(chosen.values()):
            return policy._GAIN * sampled / seconds
        expected = sum(
            found[name].likelihood ** i for name, n in chosen.items() for i in range(1, n + 1)
        )
        return (sampled + expected) / cumulative[sum(chosen.values())]

    best = lengths(found, plain, cumulative)
    assert all(0 < n <= found[name].length for name, n in best.items())
    names = sorted(found)
    for each in product(*(range(found[name].length + 1) for name in names)):
        assert rate(best) >= rate(dict(zip(names, each, strict=True))) * (1 - 1e-9)


def test_steps_that_cost_as_much_as_their_tokens_draft_nothing() -> None:
    even = [float(i) for i in range(1, 20)]
    assert lengths({"a": Guess(8, 0.99)}, Step(1, 1, 1.0), even) == {}


def test_free_tokens_are_all_drafted() -> None:
    assert lengths({"a": Guess(8, 0.9)}, Step(1, 1, 1.0), [1.0] * 20) == {"a": 8}


def test_what_is_accepted_raises_the_estimate_and_what_is_not_lowers_it() -> None:
    acceptance = Acceptance()
    first = acceptance.likelihood("s", "tree", 0.6)
    for _ in range(5):
        acceptance.learn("s", "tree", 4, 4)
    high = acceptance.likelihood("s", "tree", 0.6)
    for _ in range(20):
        acceptance.learn("s", "tree", 4, 0)
    low = acceptance.likelihood("s", "tree", 0.6)
    assert low < first < high
    for _ in range(500):
        acceptance.idle("s", "tree")
    assert abs(acceptance.likelihood("s", "tree", 0.6) - first) < 0.02


def test_a_new_sequence_starts_with_the_estimate_of_its_source() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.learn("a", "tree", 4, 0)
    assert (
        acceptance.likelihood("b", "tree", 0.6) < 0.2 < acceptance.likelihood("b", "context", 0.6)
    )
    acceptance.forget("a")
    assert acceptance.likelihood("a", "tree", 0.6) == acceptance.likelihood("b", "tree", 0.6)


@given(st.lists(st.tuples(st.integers(1, 99), st.floats(1e-6, 10)), min_size=1, max_size=8))
def test_costs_never_fall_with_size(points: list[tuple[int, float]]) -> None:
    costs = Costs(curve(points), curve(points))
    seconds = [costs.of_extend(n) for n in range(1, 200)]
    assert all(a <= b + 1e-12 for a, b in pairwise(seconds))


@pytest.mark.parametrize("points", [[], [(0, 1.0)], [(1, 0.0)], [(1, float("nan"))], [(2, -1.0)]])
def test_what_is_no_measurement_is_refused(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="measurement"):
        curve(points)
