"""The rules for when work counts as hung: time by the pulse, limits by the kind of work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.scheduler.plan import Extend, Plan, Row
from sgl_mlx.runtime.watchdog.pulse import FIRST, ORDER, Pulse, Work
from sgl_mlx.runtime.watchdog.watchdog import Watchdog

LIMIT = 8.0


def extend(tokens: int, prefix: int = 0, pictures: bool = False) -> Extend:
    """Return a plan of one row, for its kind alone."""
    row = SimpleNamespace(tokens=range(tokens), prefix=range(prefix), pictures=pictures)
    return Extend((cast(Row, row),))


class Watched:
    """A pulse, and a watchdog that looks each second."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.told: list[str] = []
        self.watchdog = Watchdog(
            self.pulse, lambda: True, LIMIT, self.told.append, lambda: self.told.append("well")
        )

    def work(self, kind: Plan | str, seconds: float) -> None:
        """Work for some time; the watchdog looks before, meanwhile and after."""
        self.watchdog.look(1)
        work = self.pulse.work = Work(kind)
        self.watchdog.look(0)
        for _ in range(round(seconds)):
            self.watchdog.look(1)
        self.pulse.work, work.seconds = None, round(seconds)
        self.pulse.done.append(work)
        self.watchdog.look(1)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_known_work_hangs_after_the_limit_and_is_told_once(watched: Watched) -> None:
    watched.work("decode", 1)
    watched.work("decode", LIMIT - 1)
    assert watched.told == []
    watched.work("extend", 1)
    watched.work("extend", 3 * LIMIT)
    assert len(watched.told) == 2
    assert "its extend has not ended in 8 seconds" in watched.told[0]
    assert watched.told[1] == "well"


def test_on_a_crowded_machine_time_counts_for_less(watched: Watched) -> None:
    watched.work("decode", 1)
    watched.pulse.work = Work("decode")
    for _ in range(int(5 * LIMIT)):
        assert watched.told == []
        watched.watchdog.look(1, crowding=5.0)
    watched.watchdog.look(1, crowding=5.0)
    assert "has not ended in 40 seconds" in watched.told[0]


def test_the_first_of_a_kind_may_take_longer(watched: Watched) -> None:
    watched.work("first compile", FIRST * LIMIT - 1)
    assert watched.told == []
    watched.work("another", FIRST * LIMIT)
    assert len(watched.told) == 2


def test_a_step_of_a_new_kind_is_judged_by_what_is_known(watched: Watched) -> None:
    watched.work(extend(64), 1)
    watched.work(extend(8, prefix=4), LIMIT - 1)
    assert watched.told == []
    watched.work(extend(1), LIMIT)
    assert len(watched.told) == 2
    assert "its extend step of 1 tokens has not ended in 8 seconds" in watched.told[0]


@given(
    known=st.tuples(st.integers(1, 5000), st.integers(0, 50_000), st.integers(0, 20)),
    new=st.tuples(st.integers(1, 5000), st.integers(0, 50_000)),
)
def test_a_new_kind_may_take_as_long_as_its_size_explains(
    known: tuple[int, int, int], new: tuple[int, int]
) -> None:
    watched = Watched()
    tokens, prefix, seconds = known
    watched.work(extend(tokens, prefix), seconds)
    grown = max(1, new[0] // tokens) * max(1, new[1] // max(prefix, 1))
    limit = watched.pulse.limit(Work(extend(*new)), LIMIT)
    assert LIMIT <= limit <= max(FIRST * LIMIT, 4 * seconds)
    assert limit >= min(FIRST * LIMIT, seconds * grown)


def test_steps_with_pictures_are_not_judged_by_others(watched: Watched) -> None:
    watched.work(extend(600), 1)
    watched.work(extend(600, pictures=True), FIRST * LIMIT - 1)
    assert watched.told == []


def test_work_that_takes_long_by_nature_has_four_times_as_long(watched: Watched) -> None:
    watched.work("chunk of 100,000 tokens", 30)
    watched.work("chunk of 100,000 tokens", 119)
    assert watched.told == []
    watched.work("decode", 1)
    watched.work("decode", LIMIT)
    assert len(watched.told) == 2


def test_work_without_a_kind_teaches_nothing(watched: Watched) -> None:
    for _ in range(3):
        watched.work(ORDER, FIRST * LIMIT - 1)
    assert watched.told == []
    watched.work(ORDER, FIRST * LIMIT)
    assert len(watched.told) == 2


@given(st.lists(st.integers(0, int(LIMIT) - 1), max_size=60))
def test_many_short_pieces_never_hang(pieces: list[int]) -> None:
    watched = Watched()
    for seconds in pieces:
        watched.work("decode", seconds)
        watched.work("extend", 0)
    assert watched.told == []


def test_an_idle_thread_never_hangs(watched: Watched) -> None:
    for _ in range(10_000):
        watched.watchdog.look(1)
    assert watched.told == []
