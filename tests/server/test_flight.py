"""Prompts that arrive at once are submitted one after the other, between turns of the loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.limits import Limits
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.flight import Ask, Flights
from sgl_mlx.server.metrics import Metrics
from tests.server.scripted import ScriptedEngine


class WatchedEngine(ScriptedEngine):
    """An engine that notes the iteration of the loop in which each prompt was submitted."""

    def __init__(self) -> None:
        super().__init__(lambda *_: "hello")
        self.iteration = 0
        self.submitted: dict[str, int] = {}

    def submit(self, *args: Any, **keywords: Any) -> Future[Any]:
        if keywords["rid"] in self.submitted:
            raise InvalidParamsError(f"the id {keywords['rid']} is in flight")
        self.submitted[keywords["rid"]] = self.iteration
        return super().submit(*args, **keywords)

    async def count_iterations(self) -> None:
        while True:
            self.iteration += 1
            await asyncio.sleep(0)


def flights_of(engine: WatchedEngine, **limits: int) -> Flights:
    return Flights(engine, Limits(**limits), Metrics("scripted"))


def ask(rid: str) -> Ask:
    return Ask((Text("hi"),), SamplingParams(max_new_tokens=2), rid)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_iteration_of_the_loop_submits_one_request(streamed: bool) -> None:
    engine = WatchedEngine()
    flights = flights_of(engine)

    async def run(rid: str) -> None:
        if streamed:
            async for _ in flights.stream([ask(rid)]):
                pass
        else:
            await flights.whole([ask(rid)])

    async def all_at_once() -> None:
        counter = asyncio.create_task(engine.count_iterations())
        await asyncio.gather(*(run(f"r{i}") for i in range(40)))
        counter.cancel()

    asyncio.run(all_at_once())
    assert len(set(engine.submitted.values())) == len(engine.submitted) == 40
    engine.submitted.clear()
    asyncio.run(all_at_once())  # on another loop
    assert len(engine.submitted) == 40
    assert flights.count == 0


def test_requests_that_wait_for_their_turn_count_and_can_be_aborted() -> None:
    engine = WatchedEngine()
    flights = flights_of(engine, max_requests=3)

    async def abort_the_last() -> list[Any]:
        runs = [asyncio.create_task(flights.whole([ask(rid)])) for rid in "abcd"]
        await asyncio.sleep(0)
        assert flights.count == 3
        assert flights.abort("c") == 1
        return await asyncio.gather(*runs, return_exceptions=True)

    first, second, aborted, refused = asyncio.run(abort_the_last())
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert isinstance(aborted, HttpError)
    assert aborted.status == 499
    assert isinstance(refused, InvalidParamsError)
    assert "max_requests" in str(refused)
    assert set(engine.submitted) == {"a", "b"}
    assert flights.count == 0


def test_an_id_that_is_taken_stays_with_the_first_request() -> None:
    engine = WatchedEngine()
    flights = flights_of(engine)

    async def twice() -> list[Any]:
        runs = [asyncio.create_task(flights.whole([ask("same")])) for _ in range(2)]
        return await asyncio.gather(*runs, return_exceptions=True)

    first, second = asyncio.run(twice())
    assert isinstance(first, list)
    assert isinstance(second, InvalidParamsError)
    assert flights.count == 0
