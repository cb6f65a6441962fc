"""The rules for when work counts as hung: time by the pulse, limits by the kind of work."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.watchdog import pulse as pulses
from sgl_mlx.runtime.watchdog.pulse import FIRST, Pulse
from sgl_mlx.runtime.watchdog.watchdog import Watchdog

LIMIT = 8.0


class Clock:
    """A clock that the test turns, in place of `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Watched:
    """A pulse and a watchdog that looks each second of a clock of its own."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        patch.setattr(pulses, "time", self.clock)
        self.pulse = Pulse()
        self.told: list[str] = []
        self.watchdog = Watchdog(
            self.pulse, lambda: True, LIMIT, self.told.append, lambda: self.told.append("well")
        )

    def work(self, kind: Hashable, seconds: float) -> None:
        """Work for some time; the watchdog looks before, meanwhile and after."""
        with ExitStack() as stack:
            self.watchdog.look(1)
            stack.enter_context(self.pulse.doing(kind, "step"))
            self.watchdog.look(0)
            for _ in range(round(seconds)):
                self.clock.now += 1
                self.watchdog.look(1)
        self.watchdog.look(1)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_known_work_hangs_after_the_limit_and_is_told_once(watched: Watched) -> None:
    watched.work("decode", 1)
    watched.work("decode", LIMIT - 1)
    assert watched.told == []
    watched.work("extend", 1)
    watched.work("extend", 3 * LIMIT)
    assert len(watched.told) == 2
    assert "its step has not ended in 8 seconds" in watched.told[0]
    assert watched.told[1] == "well"


def test_the_first_of_a_kind_may_take_longer(watched: Watched) -> None:
    watched.work("first compile", FIRST * LIMIT - 1)
    assert watched.told == []
    watched.work("another", FIRST * LIMIT)
    assert len(watched.told) == 2


def test_work_that_takes_long_by_nature_has_four_times_as_long(watched: Watched) -> None:
    watched.work("chunk of 100,000 tokens", 30)
    watched.work("chunk of 100,000 tokens", 119)
    assert watched.told == []
    watched.work("decode", 1)
    watched.work("decode", LIMIT)
    assert len(watched.told) == 2


def test_work_without_a_kind_teaches_nothing(watched: Watched) -> None:
    for _ in range(3):
        watched.work(None, FIRST * LIMIT - 1)
    assert watched.told == []
    watched.work(None, FIRST * LIMIT)
    assert len(watched.told) == 2


@given(st.lists(st.integers(0, int(LIMIT) - 1), max_size=60))
def test_many_short_pieces_never_hang(pieces: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        for seconds in pieces:
            watched.work("decode", seconds)
            watched.work("extend", 0)
        assert watched.told == []


def test_an_idle_thread_never_hangs(watched: Watched) -> None:
    for _ in range(10_000):
        watched.watchdog.look(1)
    assert watched.told == []
