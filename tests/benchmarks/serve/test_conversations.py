"""Conversations are held as chat clients hold them, and what servers do wrong is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sgl_mlx.benchmarks.peers.system import PeerError
from sgl_mlx.benchmarks.serve.compare import Bench
from sgl_mlx.benchmarks.serve.measure import Run
from sgl_mlx.benchmarks.serve.servers import RunningServer
from sgl_mlx.benchmarks.serve.trace import TRACES
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Size
from tests.server.conftest import ThreadServer

SIZE = Size(0.01)
USAGE = {"prompt_tokens": 40, "completion_tokens": 3}


class Fake:
    """A chat server that answers with given chunks; `bodies` holds the requests."""

    def __init__(self, *chunks: dict[str, Any], status: int = 200) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.most = self._at_once = 0
        self._chunks = chunks
        self._status = status
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        if self._status != 200:
            return JSONResponse({"error": "too many"}, self._status)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> Any:
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        for chunk in self._chunks:
            await asyncio.sleep(0.001)
            yield f"data: {json.dumps(chunk)}\n\n"
        self._at_once -= 1
        yield "data: [DONE]\n\n"


def text(piece: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": piece}}]}


@pytest.fixture
def hold(words: Words) -> Iterator[Callable[..., Any]]:
    """`hold(fake, trace, at)` returns the comparison of one run on a fake server."""
    servers: list[ThreadServer] = []

    def _hold(fake: Fake, trace: str = "chat", at: int = 2, **server: Any) -> Any:
        servers.append(ThreadServer(fake.app))
        servers[-1].open()
        running = RunningServer("fake", f"{servers[-1].url}/v1", **server)
        bench = Bench([running], {}, words, SIZE, 1, 30)
        [found] = bench.compare([TRACES[trace]], [at])
        return found

    yield _hold
    for server in servers:
        server.close()


def run_of(comparison: Any) -> Run:
    [run] = comparison.runs["fake"]
    return run  # type: ignore[no-any-return]


def test_each_turn_carries_the_whole_conversation(hold: Callable[..., Any]) -> None:
    fake = Fake(text("well"), text(" then"), {"choices": [], "usage": USAGE})
    run = run_of(hold(fake, at=1, model="m", key="k"))
    turns = [body for body in fake.bodies if body["messages"][0]["role"] == "system"]
    assert len(turns) == len(run.replies) == 4 * 4
    for i, body in enumerate(turns):
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", "user", *["assistant", "user"] * (i % 4)]
        assert body["model"] == "m"
    assert turns[3]["messages"][:-2] == turns[2]["messages"]
    assert turns[1]["messages"][2]["content"] == "well then"


def test_counts_and_times_are_the_servers_and_the_clients(hold: Callable[..., Any]) -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 10}}
    run = run_of(hold(Fake(text("a"), text("b"), {"choices": [], "usage": usage}), at=3))
    assert (run.prompt_tokens, run.output_tokens) == (40 * 16, 3 * 16)
    assert run.hit_rate == 0.25
    assert all(reply.first > 0.001 for reply in run.replies)
    assert len(run.gaps) == 16
    assert run.speed == run.output_tokens / run.seconds


def test_llama_servers_count_of_cached_tokens_is_read(hold: Callable[..., Any]) -> None:
    last = {"choices": [], "usage": USAGE, "timings": {"cache_n": 20}}
    assert run_of(hold(Fake(text("a"), last))).hit_rate == 0.5


@pytest.mark.parametrize("at", [1, 3, 6])
def test_so_many_conversations_are_held_at_once(hold: Callable[..., Any], at: int) -> None:
    pieces = [text("a") for _ in range(20)]
    fake = Fake(*pieces, {"choices": [], "usage": USAGE})
    run = run_of(hold(fake, trace="agent", at=at))
    assert len(run.replies) == 3 * max(at, 4)
    assert fake.most >= at
    systems = {body["messages"][0]["content"] for body in fake.bodies}
    shared = [system for system in systems if "Tools:" in system]
    assert len(shared) == 1


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (Fake(status=429), "refused with status 429: .*too many"),
        (Fake(text("a")), "without counts of tokens"),
        (Fake({"error": {"message": "no"}}), "answers with an error: .*no"),
        (Fake({"choices": 5}), "without counts of tokens"),
    ],
)
def test_a_server_that_fails_is_named(hold: Callable[..., Any], fake: Fake, message: str) -> None:
    found = hold(fake)
    assert found.runs == {}
    with pytest.raises(PeerError, match=message):
        raise PeerError(found.failures["fake"])


def test_equal_numbers_give_equal_conversations(words: Words) -> None:
    for trace in TRACES.values():
        first, second, other = (trace.conversations(words, SIZE, count) for count in (4, 4, 8))
        assert first == second == other[:4]
        assert len({c.turns for c in other}) == 8


def test_an_agents_prompt_has_about_4000_tokens(words: Words) -> None:
    [conversation] = TRACES["agent"].conversations(words, Size(1), 1)
    # tokenizers differ in how many tokens they make of JSON
    assert 3200 < words.count(conversation.system) < 6500
