"""A deadline ends a sequence wherever it stands, and says where that was."""

from __future__ import annotations

import itertools

import pytest

from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.tier import Tier
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.runtime.fakes import FakeRunner, FakeStore, drive
from tests.runtime.truth import Fork, make_sequence


class Bench:
    """A scheduler whose clock is `now`."""

    def __init__(self, store: FakeStore | None = None) -> None:
        self.now = 0.0
        tier = Tier(store, "the fake", 4, worthwhile=4) if store is not None else None
        self.cache = PrefixCache(100, tier=tier)
        limits = SchedulerLimits(max_running=1)
        self.scheduler = Scheduler(self.cache, limits, lambda: self.now)
        self.runner = FakeRunner(self.cache, store)
        self._ids = itertools.count()

    def add(self, deadline: float | None, new: int = 20, fork: Fork | None = None) -> Sequence:
        s = make_sequence(self._ids, (1, 2, 3) * 3, new, *([fork] if fork else []))
        s.deadline = deadline
        self.runner.know(s)
        self.scheduler.add(s)
        return s

    def turn(self) -> None:
        plan = self.scheduler.next()
        assert plan is not None
        self.scheduler.commit(plan, self.runner.run(plan))


def message(s: Sequence) -> str:
    assert s.finish_reason is not None
    assert s.finish_reason.type == "abort"
    return s.finish_reason.message or ""


def test_a_running_and_a_waiting_request_end_at_their_deadlines() -> None:
    bench = Bench()
    running, waiting, patient = bench.add(5.0), bench.add(2.0), bench.add(None, new=3)
    for _ in range(4):
        bench.turn()
    bench.now = 4.9
    bench.turn()
    assert "while the request was waiting, with 0 of at most 20 tokens" in message(waiting)
    assert running.finish_reason is None
    bench.now = 5.0
    bench.turn()
    assert "while the request was running, with 5 of at most 20 tokens" in message(running)
    drive(bench.scheduler, bench.runner)
    assert patient.finish_reason is not None
    assert patient.finish_reason.type == "length"
    assert bench.cache.available == 100


def test_what_ended_in_time_is_left_alone() -> None:
    bench = Bench()
    s = bench.add(1.0, new=2)
    drive(bench.scheduler, bench.runner)
    bench.now = 2.0
    assert bench.scheduler.next() is None
    assert s.finish_reason is not None
    assert s.finish_reason.type == "length"


def test_the_branches_of_a_late_request_end_with_it() -> None:
    bench = Bench()
    s = bench.add(1.0, fork=Fork((1, 2), ((3,), (1, 1))))
    bench.turn()
    bench.now = 1.5
    drive(bench.scheduler, bench.runner)
    assert "deadline" in message(s)
    assert all(branch.finish_reason is not None for branch in s.after)
    assert bench.cache.available == 100


def test_a_request_that_waits_for_the_disk_ends_at_its_deadline() -> None:
    store = FakeStore()
    bench = Bench(store)
    bench.add(None, new=1)
    drive(bench.scheduler, bench.runner)
    bench.cache.spill()
    bench.runner.flush()
    store.move(bench.cache.take_transfers(), bench.runner.memory)
    late = bench.add(3.0)
    assert bench.scheduler.next() is None
    assert store.readings
    assert bench.scheduler.seconds_left == 3.0
    bench.now = 3.5
    assert bench.scheduler.next() is None
    assert "deadline passed while the request was waiting" in message(late)
    assert bench.scheduler.idle


def test_the_time_left_is_that_to_the_earliest_deadline() -> None:
    bench = Bench()
    assert bench.scheduler.seconds_left is None
    for deadline in (7.0, 4.0, None, 9.0):
        bench.add(deadline, new=50)
    assert bench.scheduler.seconds_left == 4.0
    bench.now = 4.5
    bench.turn()
    assert bench.scheduler.seconds_left == pytest.approx(2.5)
    bench.now = 20.0
    bench.turn()
    assert bench.scheduler.seconds_left is None
