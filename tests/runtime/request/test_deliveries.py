"""Calls come in order for each owner, once each, and past owners whose calls block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.request.deliveries import Deliveries
from tests.patience import PATIENCE


class Desk:
    """Deliveries, what they called, and owners whose next call blocks until told."""

    def __init__(self) -> None:
        self.deliveries = Deliveries(patience=0.0)
        self.deliveries.start()
        self.called: list[tuple[int, int]] = []
        self.gates: dict[int, threading.Event] = {}
        self._count = 0
        self._called = threading.Condition()

    def put(self, owner: int, blocks: bool = False) -> None:
        inside, gate = threading.Event(), threading.Event()
        number, self._count = self._count, self._count + 1

        def order() -> None:
            inside.set()
            if blocks:
                assert gate.wait(PATIENCE)
            with self._called:
                self.called.append((owner, number))
                self._called.notify_all()

        self.deliveries.put(order, owner)
        if blocks:
            self.gates[owner] = gate
            self.relieved(inside.is_set)

    def until(self, count: int) -> None:
        self.relieved(lambda: len(self.called) >= count)

    def relieved(self, condition: Callable[[], bool]) -> None:
        """Wait for something while blocked calls are passed, as the watchdog does."""
        with self._called:
            for _ in range(round(PATIENCE / 0.005)):
                if condition():
                    return
                self.deliveries.relieve()
                self._called.wait(0.005)
        raise AssertionError(f"only {self.called} were called")

    def end(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self.deliveries.close()
        for thread in self.deliveries.threads:
            thread.join(PATIENCE)
        assert not self.deliveries.threads


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.end()


def test_owners_that_block_hold_up_nobody_else(desk: Desk) -> None:
    for owner in range(5):
        desk.put(owner, blocks=True)
    for owner in range(10):
        desk.put(owner)
    desk.until(5)
    assert [owner for owner, _ in desk.called] == [5, 6, 7, 8, 9]


def test_a_call_that_does_not_block_keeps_its_thread(desk: Desk) -> None:
    threads: set[int] = set()
    done = threading.Event()
    for _ in range(100):
        desk.deliveries.put(lambda: threads.add(threading.get_ident()), None)
    desk.deliveries.put(done.set, None)
    assert done.wait(PATIENCE)
    assert len(threads) == 1


def test_an_error_ends_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(3)

    desk.deliveries.put(leave, 0)
    desk.put(0)
    desk.until(1)
    assert "a callback ended with an error" in caplog.text


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=25))
def test_each_is_called_once_and_in_its_owners_order(steps: list[tuple[int, bool, bool]]) -> None:
    desk = Desk()
    put: list[int] = []
    try:
        for owner, blocks, lets_go in steps:
            blocks = blocks and owner not in desk.gates
            desk.put(owner, blocks)
            put.append(owner)
            if lets_go and (gate := desk.gates.pop(owner, None)) is not None:
                gate.set()
        free = [owner for owner in put if owner not in desk.gates]
        desk.until(len(free))
    finally:
        desk.end()
    for owner in range(4):
        numbers = [number for whose, number in desk.called if whose == owner]
        assert numbers == [number for number, whose in enumerate(put) if whose == owner]
