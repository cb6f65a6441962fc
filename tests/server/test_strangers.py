"""Requests that other clients send: each is understood, or refused in the request's own words."""

from __future__ import annotations

from typing import Any, get_type_hints

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_mlx.server.anthropic.messages import MessagesRequest
from sgl_mlx.server.native.generate import GenerateRequest
from sgl_mlx.server.openai.chat import ChatRequest
from sgl_mlx.server.openai.completions import CompletionRequest
from sgl_mlx.server.openai.responses import ResponsesRequest
from sgl_mlx.server.refused import Refused

Script = Any
ASK = [{"role": "user", "content": "How is the weather in Rome?"}]
BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": ASK}),
    "/v1/completions": (CompletionRequest, {"prompt": "a"}),
    "/v1/responses": (ResponsesRequest, {"input": "a"}),
    "/v1/messages": (MessagesRequest, {"messages": ASK, "max_tokens": 5}),
    "/generate": (GenerateRequest, {"text": "a"}),
}
REFUSED = [
    (path, name, mark)
    for path, (shape, _) in BODIES.items()
    for name, hint in get_type_hints(shape, include_extras=True).items()
    for mark in getattr(hint, "__metadata__", ())
    if isinstance(mark, Refused)
]


def message(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text
    told: str = answer.json()["error"]["message"]
    return told


@pytest.fixture
def url(script: Script) -> str:
    return str(script()[1])


@pytest.mark.parametrize(("path", "name", "mark"), REFUSED, ids=lambda v: str(v)[:30])
def test_a_field_that_would_change_the_answer_is_refused_by_name(
    url: str, client: httpx.Client, path: str, name: str, mark: Refused
) -> None:
    body = BODIES[path][1]
    for value in ("some", 3, ["some"], {"some": 1}):
        told = message(client.post(url + path, json={**body, name: value}))
        assert told == f"{name} is not supported; {mark.advice}"
    for nothing in (None, False, "", [], {}, *mark.harmless):
        assert client.post(url + path, json={**body, name: nothing}).status_code == 200


CALLS = {
    "/v1/chat/completions": ["required", {"type": "function", "function": {"name": "f"}}],
    "/v1/responses": ["required", {"type": "function", "name": "f"}],
    "/v1/messages": [{"type": "any"}, {"type": "tool", "name": "f"}],
}


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("tools", [None, [], [{"type": "web_search_20250305", "name": "w"}]])
def test_a_call_cannot_be_demanded_without_tools(
    url: str, client: httpx.Client, path: str, tools: Any
) -> None:
    for choice in CALLS[path]:
        more = {"tools": tools, "tool_choice": choice}
        told = message(client.post(url + path, json={**BODIES[path][1], **more}))
        assert told.startswith("tool_choice asks for")
        assert told.endswith("are: none")


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_error_names_the_place_that_the_client_wrote(
    url: str, client: httpx.Client, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/messages"]))
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"} for _ in range(data.draw(st.integers(1, 5)))
    ]
    bad = data.draw(st.integers(0, len(messages) - 1))
    messages[bad]["content"] = [{"type": "text", "text": "a"}, {"type": "of no kind"}]
    field = "input" if path == "/v1/responses" else "messages"
    body: dict[str, Any] = {**BODIES[path][1], field: messages}
    if data.draw(st.booleans()):
        name = "system" if path == "/v1/messages" else "instructions"
        body[name] = "Be brief."
    if data.draw(st.booleans()):
        tool = {"name": "f", "input_schema": {}, "parameters": {}}
        body["tools"] = [tool if path == "/v1/messages" else {"type": "function", **tool}]
    assert f"{field}[{bad}].content[1]" in message(client.post(url + path, json=body))


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "min_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/v1/messages", "max_tokens"),
    ],
)
def test_errors_have_the_request_s_own_words(
    url: str, client: httpx.Client, path: str, field: str
) -> None:
    for value in (-2, -(2**40), 2**62 if field == "min_tokens" else -3):
        told = message(client.post(url + path, json={**BODIES[path][1], field: value}))
        assert told.startswith(field)
        assert "_new_tokens" not in told


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_minus_one_token_is_no_limit(script: Script, client: httpx.Client, path: str) -> None:
    engine, url = script("x" * 40)
    assert client.post(url + path, json={**BODIES[path][1], "max_tokens": -1}).status_code == 200
    assert engine.calls[-1].params.max_new_tokens > 1000


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_beside_its_type_constrains(
    script: Script, client: httpx.Client, kind: str
) -> None:
    engine, url = script("{}")
    body = {"messages": ASK, "response_format": {"type": kind, "schema": SCHEMA}}
    assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    assert '"a"' in engine.calls[-1].params.json_schema


def test_a_schema_of_a_beta_version_of_the_messages_constrains(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script("{}")
    format = {"type": "json_schema", "schema": SCHEMA}
    body = {"messages": ASK, "max_tokens": 9, "output_format": format}
    assert client.post(f"{url}/v1/messages", json=body).status_code == 200
    assert '"a"' in engine.calls[-1].params.json_schema


@pytest.mark.parametrize("path", [*BODIES, "/v1/models", "/health"])
def test_a_wrong_path_names_the_one_that_was_meant(
    url: str, client: httpx.Client, path: str
) -> None:
    for wrong in (f"/v1{path}", path.removeprefix("/v1") + "s", path.upper()):
        answer = client.post(url + wrong, json={})
        told = answer.json()["error"]["message"]
        assert answer.status_code == 404
        assert wrong in told
        assert "/openapi.json" in told
    assert f"did you mean {path}?" in client.post(f"{url}/v1{path}").json()["error"]["message"]


def test_a_wrong_method_names_the_right_one(url: str, client: httpx.Client) -> None:
    answer = client.get(f"{url}/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.json()["error"]["message"] == "/v1/chat/completions takes POST, got GET"


def test_a_compressed_body_is_refused_by_its_header(url: str, client: httpx.Client) -> None:
    answer = client.post(
        f"{url}/v1/completions", content=b"\x1f\x8b\x08", headers={"content-encoding": "gzip"}
    )
    assert answer.status_code == 415
    assert "gzip" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("document", {"type": "base64", "media_type": "application/pdf", "data": "aa"}),
        ("document", {"type": "file", "file_id": "f"}),
        ("image", {"type": "file", "file_id": "f"}),
    ],
)
def test_a_block_with_a_source_that_cannot_be_read_says_which_can(
    url: str, client: httpx.Client, kind: str, source: Any
) -> None:
    content = [{"type": kind, "source": source}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 9}
    told = message(client.post(f"{url}/v1/messages", json=body))
    assert told.startswith("messages[0].content[0].source must have the type ")
