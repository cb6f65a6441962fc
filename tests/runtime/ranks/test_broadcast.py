"""Plans sent from rank 0 run on another rank as they ran here, on runners of plain Python."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.ranks.broadcast import BroadcastingRunner, engine_of, run_received
from sgl_mlx.runtime.ranks.channel import Channel
from sgl_mlx.runtime.ranks.crew import Crew
from sgl_mlx.runtime.ranks.growing import GrowingRows
from sgl_mlx.runtime.ranks.identity import identity
from sgl_mlx.runtime.ranks.peer import Peer, Watch
from sgl_mlx.runtime.ranks.turns import Turns
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, RunnerStats, StepResult
from tests.runtime.scheduler.test_wire import plans


class RecordingRunner:
    """A `plan.Runner` that keeps what it was told, and answers by it."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.results: list[StepResult] = []

    def run(self, plan: Plan) -> StepResult:
        self.told.append(plan)
        ids = plan.ids if isinstance(plan, Decode) else [row.id for row in plan.rows]
        result = StepResult({name: (hash((plan, name)) % 1000,) for name in ids})
        self.results.append(result)
        return result

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        self.told.append(transfers)

    def forget_epoch(self) -> None:
        self.told.append("forget")

    def stats(self) -> RunnerStats:
        return RunnerStats()


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Crew, Peer]]:
    """Rank 0's crew with one other rank, and what that rank sees of rank 0."""
    here, there = socket.socketpair()
    crew = Crew([(Channel(here), identity(1, 2))])
    leader = Peer(Channel(there), identity(0, 2), lambda *_: None)
    watch = Watch([leader], lambda *_: None)  # without heartbeats the crew would end the process
    yield crew, leader
    watch.stop()
    crew.leave()
    leader.thread.join()
    leader.channel.close()


@settings(max_examples=200)
@given(plan=plans)
def test_a_plan_that_was_sent_gives_the_same_result(plan: Plan, two: tuple[Crew, Peer]) -> None:
    crew, leader = two
    mine, theirs = RecordingRunner(), RecordingRunner()
    runner = BroadcastingRunner(mine, crew, Turns(), engine=7)
    runner.synchronise(plan.transfers)
    if not isinstance(plan, Extend) or plan.rows:  # a step has rows
        assert runner.run(plan) == mine.results[-1]
    runner.forget_epoch()
    crew.tell("close", engine=7)
    rows = GrowingRows()
    while run_received(theirs, message := leader.next(), rows):
        assert engine_of(message) == 7
    assert theirs.told == mine.told
    assert theirs.results == mine.results


def test_a_message_from_something_else_ends_the_connection() -> None:
    here, there = socket.socketpair()
    there.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ConnectionError, match="not a rank of sgl-mlx"):
        Channel(here).receive()
    there.close()
    here.close()


def test_a_rank_that_reports_an_error_is_lost_with_that_reason() -> None:
    here, there = socket.socketpair()
    lost: list[tuple[str, bool]] = []
    reader = Peer(Channel(here), identity(1, 2), lambda _, why, silent: lost.append((why, silent)))
    other = Channel(there)
    other.tell(**{"is": "error", "text": "no such file"})
    reader.fail(BackendError("the ranks end"))
    with pytest.raises(BackendError, match="the ranks end"):
        reader.next()
    other.close()
    reader.thread.join()
    reader.channel.close()
    assert lost == [("no such file", False)]
