"""Limits over HTTP: each answer has its status and names the limit."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sgl_mlx.server import Limits

Script = Any
CHAT = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}
QUESTION = {"type": "predicate", "instructions": "x"}
OVER: dict[str, tuple[int, str, dict[str, Any]]] = {
    "max_body_bytes": (413, "/v1/completions", {"prompt": "x" * 500}),
    "max_prompts": (400, "/v1/completions", {"prompt": ["x", "y", "z"]}),
    "max_samples": (400, "/v1/completions", {"prompt": ["x", "y"], "n": 2}),
    "max_n": (400, CHAT, {"messages": [MESSAGE], "n": 3}),
    "max_stops": (400, CHAT, {"messages": [MESSAGE], "stop": ["a", "b", "c"]}),
    "max_stop_chars": (400, "/v1/completions", {"prompt": "x", "stop": "abc"}),
    "max_regex_chars": (400, "/v1/completions", {"prompt": "x", "stop_regex": "abc"}),
    "max_grammar_chars": (400, "/v1/completions", {"prompt": "x", "ebnf": "root ::= x"}),
    "max_logprobs": (400, "/v1/completions", {"prompt": "x", "logprobs": 5}),
    "max_logit_bias": (400, CHAT, {"messages": [MESSAGE], "logit_bias": dict.fromkeys("123", 1)}),
    "max_messages": (400, CHAT, {"messages": [MESSAGE] * 3}),
    "max_tools": (400, CHAT, {"messages": [MESSAGE], "tools": [TOOL] * 3}),
    "max_questions": (400, "/v1/decisions", {"input": "x", "questions": [QUESTION] * 3}),
    "max_choices": (400, "/v1/contexts/new/select", {"text": "x", "choices": ["a", "b", "c"]}),
}


@pytest.mark.parametrize("name", OVER)
def test_a_request_over_a_limit_is_told_its_name(
    script: Script, client: httpx.Client, name: str
) -> None:
    status, path, body = OVER[name]
    most = 400 if name == "max_body_bytes" else 2
    _, url = script("x", limits=Limits(**{name: most}))
    answer = client.post(url + path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, name)
    assert f"the limit {name} is {most}; to raise it" in error["message"]


def test_large_headers_and_targets_are_refused(script: Script, client: httpx.Client) -> None:
    _, url = script("x", limits=Limits(max_header_bytes=1000))
    for headers, query in (({"x-long": "x" * 1000}, ""), ({}, "?" + "x" * 1000)):
        answer = client.get(f"{url}/v1/models{query}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (431, "max_header_bytes")
    assert client.get(f"{url}/v1/models").status_code == 200


def test_requests_beyond_those_that_may_be_open_come_back_later(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script("x", manual=True, limits=Limits(max_connections=1, comment_seconds=0.05))
    body = {"prompt": "x", "stream": True}
    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = client.get(f"{url}/v1/models")
        assert refused.status_code == 503
        assert refused.json()["error"]["param"] == "max_connections"
        assert refused.headers["retry-after"] == "1"
        assert client.get(f"{url}/health").status_code == 200
        engine.run_all()
        assert "data: [DONE]" in list(lines)
    assert client.get(f"{url}/v1/models").status_code == 200
