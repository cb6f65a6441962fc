"""Health, models, metrics, keys, request ids and unknown paths."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sgl_mlx.server import Limits, app, service
from tests.server.conftest import ThreadServer
from tests.server.scripted import ScriptedEngine

Script = Callable[..., tuple[ScriptedEngine, str]]


def test_health_answers_without_generating(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    assert client.get(f"{url}/health").status_code == 200
    assert engine.calls == []


def test_health_is_503_once_the_engine_has_not_answered_for_too_long(
    script: Script, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, url = script(limits=Limits(stall_seconds=0.2))
    release = threading.Event()
    info = engine.get_server_info()
    monkeypatch.setattr(engine, "get_server_info", lambda: release.wait(20) and info)
    try:
        answer = client.get(f"{url}/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "has not answered" in answer.json()["error"]["message"]
    finally:
        release.set()


def test_an_engine_that_is_always_busy_still_shows_its_counts(
    script: Script, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, url = script()
    info, counts = engine.get_server_info(), itertools.count(1)
    gate, answered = threading.Semaphore(0), threading.Semaphore(0)

    def count() -> dict[str, Any]:
        running = next(counts)
        assert gate.acquire(timeout=20)
        answered.release()
        return {**info, "stats": {**info["stats"], "running": running}}

    monkeypatch.setattr(engine, "get_server_info", count)
    monkeypatch.setattr(service, "_BEAT_WAIT", 0.001)
    for running in range(4):  # each answer comes after the wait for it
        assert client.get(f"{url}/server_info").json()["stats"]["running"] == running
        gate.release()
        assert answered.acquire(timeout=20)
        time.sleep(0.1)  # for the event loop to see it
    gate.release(9)


def test_models_are_listed_and_shown_by_names_with_slashes(serve: Any, client: Any) -> None:
    url = serve(ScriptedEngine(), model_names=["org/model", "small"])
    listed = client.get(f"{url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["org/model", "small"]
    assert client.get(f"{url}/v1/models/org/model").json()["max_model_len"] == 4096
    missing = client.get(f"{url}/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_metrics_have_sglangs_names(script: Script, client: httpx.Client) -> None:
    _, url = script()
    text = client.get(f"{url}/metrics").text
    for name in ("num_running_reqs", "token_usage", "prompt_tokens_total", "gen_throughput"):
        assert f'sglang:{name}{{model_name="scripted"}}' in text
    assert "sglang:time_to_first_token_seconds_bucket" in text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer one"}, 200),
        ({"authorization": "bearer two"}, 200),
        ({"x-api-key": "two"}, 200),
    ],
)
def test_each_of_several_keys_opens(
    script: Script, client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    _, url = script(api_keys=["one", "two"])
    answer = client.get(f"{url}/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert client.get(f"{url}/health").status_code == 200


def test_a_request_id_is_kept_or_made(script: Script, client: httpx.Client) -> None:
    _, url = script()
    kept = client.get(f"{url}/health", headers={"x-request-id": "mine-1"})
    made = client.get(f"{url}/health", headers={"x-request-id": "no good"})
    assert kept.headers["x-request-id"] == "mine-1"
    assert len(made.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/v1/models", 405)]
)
def test_an_unknown_path_or_method_is_refused_in_json(
    script: Script, client: httpx.Client, method: str, path: str, status: int
) -> None:
    _, url = script()
    answer = client.request(method, url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_an_app_can_be_mounted_in_another(client: httpx.Client) -> None:
    outer = ThreadServer(Starlette(routes=[Mount("/llm", app(ScriptedEngine()))]))
    outer.open()
    try:
        assert client.get(f"{outer.url}/llm/v1/models").json()["data"][0]["id"] == "scripted"
    finally:
        outer.close()


def test_embeddings_are_refused_clearly(script: Script, client: httpx.Client) -> None:
    _, url = script()
    answer = client.post(f"{url}/v1/embeddings", json={"input": "x", "model": "default"})
    assert answer.status_code == 404
    assert "'scripted' makes no embeddings: it generates text" in answer.json()["error"]["message"]
    assert client.post(f"{url}/v1/embeddings", json={}).status_code == 400
