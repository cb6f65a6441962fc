"""The index of runs finds what a search through the whole list finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.speculation.runs import SHORTEST, RunIndex

few = st.lists(st.integers(0, 2), max_size=60)


def longest_match(tokens: list[int], query: list[int]) -> int:
    """The most tokens before any place of `tokens` that agree with the end of `query`."""
    best = 0
    for end in range(len(tokens)):
        length = 0
        while length < min(end, len(query)) and tokens[end - 1 - length] == query[-1 - length]:
            length += 1
        best = max(best, length)
    return best


@given(few, st.lists(st.integers(1, 5), max_size=30))
def test_a_found_place_agrees_however_the_list_grew(tokens: list[int], steps: list[int]) -> None:
    grown: list[int] = []
    index = RunIndex(grown)
    for step in [*steps, len(tokens)]:
        grown += tokens[len(grown) : len(grown) + step]
        index.update(1000)
    found = index.find(grown)
    if found is None:
        assert longest_match(grown, grown) < SHORTEST
        return
    assert found.length >= SHORTEST
    assert found.end < len(grown)
    assert grown[found.end - found.length : found.end] == grown[-found.length :]


@given(few, few)
def test_a_run_that_occurs_is_found(tokens: list[int], query: list[int]) -> None:
    index = RunIndex(tokens)
    index.update(len(tokens))
    exists = longest_match(tokens, query) >= SHORTEST
    assert (index.find(query) is not None) == exists


def test_of_several_places_the_longest_agreement_wins_and_then_the_latest() -> None:
    tokens = [9, 1, 2, 3, 5, 8, 1, 2, 3, 6, 7, 1, 2, 3, 7]
    index = RunIndex(tokens)
    index.update(100)
    found = index.find([9, 1, 2, 3])
    assert found is not None
    assert (found.end, found.length) == (4, 4)
    latest = index.find([4, 1, 2, 3])
    assert latest is not None
    assert (latest.end, latest.length) == (14, 3)


def test_indexing_in_slices_finds_the_same_in_the_end() -> None:
    tokens = list(range(50)) * 3
    index = RunIndex(tokens)
    index.update(10)
    assert index.find(tokens[:40]) is None
    for _ in range(20):
        index.update(10)
    found = index.find(tokens)
    assert found is not None
    assert found.end == 100
