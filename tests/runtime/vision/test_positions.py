"""Rotary positions of rows with pictures, cut into steps anywhere."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.cache.holding import Holding
from sgl_mlx.runtime.scheduler.plan import Extend, Row
from sgl_mlx.runtime.scheduler.sequence import Picture, Sequence
from sgl_mlx.runtime.scheduler.wire import from_json, to_json
from sgl_mlx.runtime.vision.positions import lags, rotary_positions
from tests.models.vision.conftest import GOLDENS, read_golden
from tests.models.vision.qwen.films import FILMS
from tests.runtime.qwen import CASES, IMAGE, NAMES, VIDEO


class Shown(NamedTuple):
    content_hash: bytes
    grid: tuple[int, int] | None
    tokens: int
    times: tuple[int, ...] = (0,)


class Silent:
    """An output that nobody reads."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def shown(number: int, grid: tuple[int, int], times: tuple[int, ...] = (0,)) -> Shown:
    return Shown(bytes([number]) * 32, grid, grid[0] * grid[1] * len(times), times)


def sequence(tokens: list[int], pictures: list[Picture]) -> Sequence:
    s = Sequence("s", tokens, Silent(), pictures=tuple(pictures))  # type: ignore[arg-type]
    s.holding = Holding(table=list(range(1, len(tokens) + 1)))
    return s


def rows(s: Sequence, cuts: list[int]) -> list[Row]:
    """The rows of a sequence whose tokens are computed in several steps."""
    found = []
    for first, last in pairwise([0, *cuts, len(s.tokens)]):
        if first < last:
            s.computed = first
            found.append(s.row(last - first, last))
    return found


def places(found: list[Row]) -> list[list[int]]:
    """Time, row and column of all new tokens, whatever the form of the positions."""
    joined: list[list[int]] = []
    for row in found:
        counted = mx.arange(row.position, row.position + len(row.tokens))
        positions = rotary_positions([row], counted)
        whole = positions if positions.ndim == 2 else mx.stack([positions] * 3)
        joined += whole.T.tolist()
    return joined


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_positions_are_those_of_transformers(name: str, case: str) -> None:
    values = read_golden(name).cases[case]
    tokens, pictures = values["tokens"].tolist(), []
    at = 0
    for number, (height, width) in enumerate(values["grid"].tolist()):
        at = tokens.index(IMAGE, at)
        pictures.append(Picture(at, shown(number, (height // 2, width // 2))))
        at = pictures[-1].end
    found = places(rows(sequence(tokens, pictures), []))
    assert np.array_equal(np.array(found).T, values["positions"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", FILMS)
def test_so_are_those_of_videos(name: str, case: str) -> None:
    with np.load(GOLDENS / "qwen_videos.npz") as file:
        keys = ("tokens", "grid", "positions")
        tokens, grid, expected = (file[f"{name}/{case}/{key}"] for key in keys)
    count, height, width = grid.tolist()
    ids, pictures, at = tokens.tolist(), [], 0
    seconds = 2 * FILMS[case].total * FILMS[case].milliseconds / FILMS[case].count / 1000
    step = {"qwen2_vl": 1.0, "qwen2_5_vl": 4 * seconds}.get(name, 0.0)
    blocks = [tuple(int(step * i) for i in range(count))] if step else [(0,)] * count
    for number, times in enumerate(blocks):
        at = ids.index(VIDEO, at)
        pictures.append(Picture(at, shown(number, (height // 2, width // 2), times)))
        at = pictures[-1].end
    found = places(rows(sequence(ids, pictures), []))
    assert np.array_equal(np.array(found).T, expected)


times = st.lists(st.integers(0, 5), max_size=3).map(lambda steps: tuple(accumulate([0, *steps])))
"""Positions in time, one for a picture."""


@st.composite
def prompts(draw: st.DrawFn) -> Sequence:
    tokens, pictures = [1], []
    for number in range(draw(st.integers(0, 3))):
        tokens += [1] * draw(st.integers(0, 4))
        grid = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        pictures.append(Picture(len(tokens), shown(number, grid, draw(times))))
        tokens += [2] * pictures[-1].image.tokens
    return sequence(tokens + [1] * draw(st.integers(1, 4)), pictures)


@settings(max_examples=200, deadline=None)
@given(s=prompts(), data=st.data())
def test_cuts_anywhere_change_no_position(s: Sequence, data: st.DataObject) -> None:
    whole = places(rows(s, []))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(s.tokens) - 1))))
    assert places(rows(s, cuts)) == whole


@settings(max_examples=100, deadline=None)
@given(s=prompts())
def test_text_after_a_picture_goes_on_from_its_longest_edge(s: Sequence) -> None:
    found = places(rows(s, []))
    for picture in s.pictures:
        inside = found[picture.start : picture.end]
        assert found[picture.end][0] == 1 + max(max(place) for place in inside)
        begin = min(place[0] for place in inside)
        assert {place[0] - begin for place in inside} == set(picture.image.times)
        assert begin == 1 + max(found[picture.start - 1]) or any(
            other.end == picture.start for other in s.pictures
        )
    (last,) = rows(s, [])
    s.computed = len(s.tokens)
    s.tokens.append(1)
    s.holding = Holding(table=list(range(1, len(s.tokens) + 1)))
    after = s.row(1, len(s.tokens))
    assert after.position - lags([after]).item() == 1 + found[-1][0]
    assert last.lag == 0


@settings(max_examples=100, deadline=None)
@given(branches=st.lists(prompts(), min_size=1, max_size=3), gap=st.integers(0, 9))
def test_text_after_branches_goes_on_from_the_furthest(branches: list[Sequence], gap: int) -> None:
    furthest = max(place for s in branches for place in places(rows(s, []))[-1])
    for s in branches:
        s.computed = len(s.tokens)
    after = Sequence("after", [1, 1], Silent(), after=tuple(branches), gap=gap)  # type: ignore[arg-type]
    after.join()
    after.holding = Holding(table=[901, 902])
    assert [place[0] for place in places([after.row(2, 2)])] == [
        furthest + gap + 1,
        furthest + gap + 2,
    ]


def test_rows_of_text_keep_the_positions_that_count_tokens() -> None:
    s = sequence([1] * 5, [Picture(1, Shown(b"a" * 32, None, 3))])  # as a LLaVA's
    found, counted = rows(s, []), mx.arange(5)
    assert rotary_positions(found, counted) is counted
    assert not any(row.lag for row in found)


def test_positions_survive_the_wire() -> None:
    film = Picture(1, shown(1, (1, 3), (0, 4)))
    s = sequence([1, 2, 2, 2, 2, 2, 2, 1, 1], [film])
    plan = Extend(tuple(rows(s, [3, 7])))
    again = from_json(to_json(plan))
    assert again == plan
    assert isinstance(again, Extend)
    assert places(list(again.rows)) == places(list(plan.rows))
