"""The light client and the timed event loop of the measurement of our server's cost."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sgl_mlx.benchmarks.serve.load import Order, Post, opened_load
from sgl_mlx.benchmarks.serve.served import HOST, TimedSelector, served
from sgl_mlx.errors import BenchmarkError


class Fake:
    """A server that streams two events, works for some seconds, refuses, or breaks off."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.at_once = self.most = 0
        routes = [Route("/{what}", self.answer, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def answer(self, request: Request) -> Response:
        self.seen.append(await request.json())
        what = request.path_params["what"]
        if what == "refuse":
            return PlainTextResponse("no", 429)
        if what == "work":
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                pass
        return StreamingResponse(self._events(what), media_type="text/event-stream")

    async def _events(self, what: str) -> Any:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        yield "data: {}\n\n"
        await asyncio.sleep(1000 if what == "hang" else 0.01)
        self.at_once -= 1
        if what != "break":
            yield "data: [DONE]\n\n"


def test_requests_are_sent_as_ordered() -> None:
    fake = Fake()
    posts = [Post("/stream", json.dumps(i)) for i in range(7)]
    with served(fake.app) as server, opened_load() as load:
        for _ in range(2):
            seen = load.send(Order(HOST, server.port, 3, posts))
            assert len(seen.first) == 7
            assert all(0 < first <= seen.seconds for first in seen.first)
        assert server.cpu() > 0
    assert sorted(fake.seen) == sorted([*range(7)] * 2)
    assert fake.most == 3


def test_requests_aside_are_given_up_when_the_others_have_ended() -> None:
    fake = Fake()
    posts = [Post("/stream", json.dumps(i)) for i in range(5)]
    aside = [Post("/hang", '"hang"'), Post("/refuse", '"refuse"')]
    with served(fake.app) as server, opened_load() as load:
        seen = load.send(Order(HOST, server.port, 1, posts, aside))
    assert len(seen.first) == 5
    assert "hang" in fake.seen


@pytest.mark.parametrize(("what", "said"), [("refuse", "429"), ("break", "data: {}")])
def test_a_request_that_fails_is_an_error_and_the_next_order_is_taken(what: str, said: str) -> None:
    with served(Fake().app) as server, opened_load() as load:
        with pytest.raises(BenchmarkError, match=said):
            load.send(Order(HOST, server.port, 1, [Post(f"/{what}", "1")]))
        assert load.send(Order(HOST, server.port, 1, [Post("/stream", "1")])).seconds > 0


def test_the_longest_work_of_the_event_loop_is_found() -> None:
    """Work that takes 50 ms of its thread is found; waiting is none."""
    selector = TimedSelector()
    with served(Fake().app, selector) as server, opened_load() as load:
        load.send(Order(HOST, server.port, 1, [Post("/stream", "1"), Post("/work", "1")]))
    assert 0.05 <= selector.busy.cpu <= selector.busy.wall
