"""Deadlines: alarms ring in the order of their times, cancelled ones never, and no thread stays."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.lang.clock import Clock
from tests.patience import PATIENCE


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=30))
def test_alarms_ring_in_order_unless_they_are_cancelled(alarms: list[tuple[int, bool]]) -> None:
    clock, rung, done = Clock(), list[int](), threading.Event()
    now = 0.0
    with patch("sgl_mlx.lang.clock.time", SimpleNamespace(monotonic=lambda: now)):
        for number, cancelled in alarms:
            alarm = clock.after(number / 1000, partial(rung.append, number))
            if cancelled:
                alarm.cancel()
        clock.after(0.04, done.set)
        now = 1.0
        assert done.wait(PATIENCE)
    assert rung == sorted(number for number, cancelled in alarms if not cancelled)


def test_the_thread_ends_with_the_last_alarm_and_starts_again() -> None:
    clock = Clock()
    for _ in range(3):
        rung = threading.Event()
        before = set(threading.enumerate())
        clock.after(0.01, rung.set)
        started = set(threading.enumerate()) - before
        assert rung.wait(PATIENCE)
        for thread in started:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_an_alarm_that_is_due_earlier_rings_earlier() -> None:
    clock, first = Clock(), threading.Event()
    late = clock.after(1000, lambda: None)
    clock.after(0.01, first.set)
    assert first.wait(PATIENCE)
    late.cancel()


def test_cancelled_alarms_are_forgotten() -> None:
    clock = Clock()
    for _ in range(1000):
        clock.after(1000, lambda: None).cancel()
    assert len(clock._alarms) <= 1
