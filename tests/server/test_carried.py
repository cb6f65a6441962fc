"""Requests that a completion carries are answered as those sent to their own path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

Script = Callable[..., Any]
SCORE = {"parts": ["Which? "], "choices": ["a", "b"], "keep": False}


def carried(path: str, body: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": "x", "carried": {"path": path, "body": body}, **more}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/contexts/new/score", SCORE),
        ("/v1/contexts/new/generate", {"parts": ["x"], "keep": False}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_the_answer_is_that_of_the_path(
    script: Script, client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    _, url = script("an answer", logprobs={"a": -0.1})
    directly = client.post(url + path, json=body).json()
    inside = client.post(f"{url}/v1/completions", json=carried(path, body)).json()
    for answer in (directly, inside):
        for sample in answer.get("samples", ()):
            del sample["meta_info"]["id"]
    assert inside == directly


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (carried("/v1/contexts/new/score", {**SCORE, "choices": []}), 400),
        (carried("/v1/contexts/new/score", {"choices": 3}), 400),
        (carried("/v1/contexts/some-id/score", SCORE), 400),  # another worker may have it
        (carried("/flush_cache", {}), 400),
        (carried("/v1/contexts/new/score", "no object"), 400),
        (carried("/v1/contexts/new/score", SCORE, model="another"), 404),
    ],
)
def test_what_is_wrong_is_refused(
    script: Script, client: httpx.Client, body: dict[str, Any], status: int
) -> None:
    engine, url = script("x")
    answer = client.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert engine.calls == []


def test_a_key_is_wanted_for_carried_requests_too(script: Script, client: httpx.Client) -> None:
    engine, url = script("x", api_keys=["secret"])
    body = carried("/v1/contexts/new/score", SCORE)
    assert client.post(f"{url}/v1/completions", json=body).status_code == 401
    assert engine.calls == []
