"""Workers behind sglang-router that die, drain, refuse, come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BackendError
from sgl_mlx.server import Limits, app
from tests.patience import PATIENCE, eventually
from tests.server.conftest import ThreadServer
from tests.server.router import Router, router_over
from tests.server.scripted import ScriptedEngine
from tests.server.test_hardening import leave
from tests.server.worker import Worker

LONG = SamplingParams(max_new_tokens=300, temperature=0, ignore_eos=True, token_healing=False)
SHORT = LONG.override(max_new_tokens=4)


@pytest.fixture(scope="module")
def workers(toy_folder: Path, tmp_path_factory: Any) -> Iterator[list[Worker]]:
    folder = tmp_path_factory.mktemp("workers")
    made = [Worker(toy_folder, folder / f"log{i}") for i in range(2)]
    for worker in made:
        worker.start()
    yield made
    for worker in made:
        worker.close()


@pytest.fixture
def pair(workers: list[Worker], tmp_path: Path) -> Iterator[tuple[list[Worker], Router]]:
    """Two workers that run, and a router before them."""
    for worker in workers:
        worker.wait()
    with router_over([worker.url for worker in workers], tmp_path / "log") as router:
        yield workers, router


@pytest.fixture
def endpoint_of() -> Iterator[Callable[[str], sgl.RuntimeEndpoint]]:
    made: list[sgl.RuntimeEndpoint] = []

    def _endpoint(url: str) -> sgl.RuntimeEndpoint:
        made.append(sgl.RuntimeEndpoint(url))
        return made[-1]

    yield _endpoint
    for endpoint in made:
        endpoint.shutdown()


def busy(workers: list[Worker]) -> tuple[Worker, Worker]:
    """Wait until a worker has several requests; return it and the other one."""
    at_work: list[Worker] = []

    def look() -> bool:
        at_work[:] = [worker for worker in workers if worker.running() > 2]
        return bool(at_work)

    eventually(look, "a worker is at work")
    [other] = [worker for worker in workers if worker is not at_work[0]]
    return at_work[0], other


def test_only_what_a_killed_worker_was_answering_fails(pair: Any, endpoint_of: Any) -> None:
    workers, router = pair
    endpoint = endpoint_of(router.url)

    def ask(i: int, params: SamplingParams, streamed: bool) -> Any:
        watch = (lambda event: None) if streamed else None
        return endpoint.submit((Text(f"{i} is the number. Tell"),), params, watch)

    asked = [ask(i, LONG, streamed=i % 2 == 0) for i in range(24)]
    lost, other = busy(workers)
    answering = lost.running()
    lost.kill()
    later = [ask(100 + i, SHORT, streamed=i % 2 == 0) for i in range(8)]
    ended = wait([*asked, *later], timeout=PATIENCE)
    assert not ended.not_done, "a request hangs"
    assert all(future.exception() is None for future in later)
    failed = [error for future in asked if (error := future.exception())]
    assert all(isinstance(error, BackendError) for error in failed)
    assert len(failed) <= answering

    router.until({lost.url: False, other.url: True})
    lost.start()
    lost.wait()
    router.until({lost.url: True, other.url: True})
    again = [ask(200 + i, LONG, streamed=True) for i in range(8)]
    eventually(lambda: lost.running() > 0, "it works again")
    assert all(future.result(PATIENCE) for future in again)


def test_a_worker_that_drains_loses_nothing(pair: Any, endpoint_of: Any) -> None:
    workers, router = pair
    endpoint = endpoint_of(router.url)
    asked = [endpoint.submit((Text(f"{i}: long"),), LONG, lambda event: None) for i in range(16)]
    stopped, other = busy(workers)
    stopped.interrupt()
    while stopped.ends() is None:  # the router knows of it long before connections close
        asked.append(endpoint.submit((Text(f"{len(asked)}: short"),), SHORT))
        time.sleep(0.1)
    assert all(len(future.result(PATIENCE)[0].token_ids) > 3 for future in asked)
    assert stopped.ends() == 0
    router.until({stopped.url: False, other.url: True})
    stopped.start()  # for the next test
    stopped.wait()
    router.until({stopped.url: True, other.url: True})


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., tuple[Router, list[ThreadServer]]]]:
    """`scripted(*engines, limits=...)`: a router over scripted engines, and their servers."""
    servers: list[ThreadServer] = []
    routers: list[Any] = []

    def _scripted(*engines: ScriptedEngine, **options: Any) -> tuple[Router, list[ThreadServer]]:
        for engine in engines:
            servers.append(ThreadServer(app(engine, model_names=["m"], **options)))
            servers[-1].open()
        routers.append(router_over([server.url for server in servers], tmp_path / "log"))
        return routers[-1].__enter__(), servers

    yield _scripted
    for router in routers:
        router.__exit__(None, None, None)
    for server in servers:
        server.close()


def test_a_full_worker_refuses_and_keeps_what_it_has(scripted: Any) -> None:
    engine = ScriptedEngine("a b c", manual=True)
    router, _ = scripted(engine, limits=Limits(max_requests=1))
    url, body = f"{router.url}/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 4}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, url, json=body, timeout=PATIENCE)
        eventually(lambda: bool(engine.pending), "the first is at work")
        refused = httpx.post(url, json=body, timeout=PATIENCE)  # after some tries
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        engine.run_all()
        assert first.result(PATIENCE).json()["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_its_client_leaves_is_aborted(scripted: Any, stream: bool) -> None:
    engine = ScriptedEngine("a b c", manual=True)
    router, _ = scripted(engine)
    body = {"model": "m", "prompt": "x", "max_tokens": 4, "stream": stream}
    leave(router.url, "/v1/completions", body, once=lambda: bool(engine.calls))
    eventually(lambda: not engine.pending, "it is aborted")


def test_workers_are_added_and_removed(scripted: Any) -> None:
    one, two = ScriptedEngine("one"), ScriptedEngine("two")
    router, servers = scripted(one)
    added = ThreadServer(app(two, model_names=["m"]))
    added.open()
    try:
        router.add(added.url)
        router.until({servers[0].url: True, added.url: True})
        router.remove(servers[0].url)
        router.until({added.url: True})
        asked = {"text": "x", "sampling_params": {"max_new_tokens": 2}}
        assert httpx.post(f"{router.url}/generate", json=asked).json()["text"] == "two"
    finally:
        added.close()
