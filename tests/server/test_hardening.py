"""Bodies that are broken, clients that leave, queues that are full: only their own request ends."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import Limits
from tests.patience import eventually
from tests.server.conftest import events
from tests.server.scripted import ScriptedEngine

Script = Any
POSTS = [
    *("/v1/completions", "/v1/chat/completions", "/generate", "/v1/messages", "/v1/responses"),
    *("/v1/decisions", "/v1/contexts", "/v1/contexts/new/generate"),
]
DEEP = b"[" * 10_000 + b"]" * 10_000
BROKEN = {
    "nothing": b"",
    "no JSON": b"{",
    "another type": b"[]",
    "NaN": b'{"prompt": "x", "temperature": NaN, "messages": []}',
    "infinity": b'{"prompt": "x", "temperature": 1e999, "messages": []}',
    "broken UTF-8": b'{"prompt": "\xff", "messages": [{"role": "user", "content": "\xff"}]}',
    "broken UTF-8 aside": b'{"prompt": "x", "messages": [], "other": "\xff"}',
    "half a surrogate": b'{"prompt": "\\ud800", "messages": [{"role": "\\ud800"}]}',
    "depth": DEEP,
    "depth aside": b'{"prompt": "x", "messages": [], "other": '
    + b"[" * 10_000
    + b"]" * 10_000
    + b"}",
    "too many digits": b'{"prompt": "x", "messages": [], "seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_a_client_error_with_a_message(
    script: Script, client: httpx.Client, path: str, name: str
) -> None:
    _, url = script()
    answer = client.post(url + path, content=BROKEN[name])
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]
    assert client.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("text", [r"\ud800", r"x\udc00", r"\ud83d\u0041", r"\ud83dx"])
@pytest.mark.parametrize("where", ['{"prompt": "%s"}', '{"%s": 1}', '{"o": [["%s"]]}'])
def test_half_a_character_is_named(
    script: Script, client: httpx.Client, text: str, where: str
) -> None:
    _, url = script()
    answer = client.post(f"{url}/v1/completions", content=(where % text).encode())
    assert answer.status_code == 400
    assert "half a character (the lone surrogate U+D" in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(script: Script, client: httpx.Client, chunked: bool) -> None:
    _, url = script(limits=Limits(max_body_bytes=30_000_000))

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000_000

    content: Any = pieces() if chunked else b" " * 100_000_000
    answer = client.post(f"{url}/v1/completions", content=content)
    assert answer.status_code == 413
    assert "too large" in answer.json()["error"]["message"]


def test_a_full_queue_is_503_with_a_time_to_come_back(script: Script, client: httpx.Client) -> None:
    engine, url = script("x", manual=True, limits=Limits(max_requests=1))
    stream = {"prompt": "x", "stream": True}
    with client.stream("POST", f"{url}/v1/completions", json=stream) as first:
        eventually(lambda: len(engine.calls) == 1, "the first request is under way")
        refused = client.post(f"{url}/v1/completions", json={"prompt": "y"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        engine.run_all()
        assert first.read().endswith(b"data: [DONE]\n\n")


def test_comments_flow_while_a_prompt_is_computed(script: Script, client: httpx.Client) -> None:
    engine, url = script("x", manual=True, limits=Limits(comment_seconds=0.05))
    body = {"prompt": "x", "stream": True}
    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == [": waiting", "", ": waiting"]
        engine.run_all()
        assert "data: [DONE]" in list(lines)


def test_an_error_after_the_headers_comes_in_the_stream(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script([RuntimeError("broke")], manual=True, limits=Limits(comment_seconds=0.05))
    body = {"prompt": "x", "stream": True}
    with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.run_all()
        rest = [line for line in lines if line.startswith("data: ")]
    assert '"error":{"message":"internal error: RuntimeError: broke"' in rest[0]
    assert rest[1:] == ["data: [DONE]"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_at_once(
    script: Script, path: str, stream: bool
) -> None:
    engine, url = script("x", manual=True)
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    body |= {"max_tokens": 9, "input": "x"}
    body |= {"questions": [{"type": "predicate", "instructions": "x"}]}
    body |= {"text": "x"} if path == "/generate" else {}
    leave(url, path, body, once=lambda: len(engine.calls) == 1)
    eventually(engine.calls[0].future.cancelled, "the request is given up")


def test_a_client_that_leaves_in_the_middle_frees_its_slots(
    toy_engine: Engine, serve: Any, client: httpx.Client
) -> None:
    url = serve(toy_engine)
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "n": 4}

    def running() -> int:
        return int(toy_engine.get_server_info()["stats"]["running"])

    for stream in (False, True):
        sent = {**body, "stream": stream}
        leave(url, "/v1/completions", sent, once=lambda: running() == 4)
        eventually(lambda: running() == 0, "nothing runs")
    stats = toy_engine.get_server_info()["stats"]
    assert stats["free_slots"] + stats["cached_slots"] == 4000
    assert client.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_request_that_takes_too_long_is_408(
    toy_engine: Engine, serve: Any, client: httpx.Client
) -> None:
    url = serve(toy_engine, limits=Limits(request_timeout=0.05))
    body = {"prompt": "a", "max_tokens": 480, "ignore_eos": True, "n": 8}
    answer = client.post(f"{url}/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")


def test_an_engine_that_was_shut_down_is_503(serve: Any, client: httpx.Client) -> None:
    engine = ScriptedEngine("x")
    url = serve(engine)
    engine.shutdown()
    for stream in (False, True):
        answer = client.post(f"{url}/v1/completions", json={"prompt": "x", "stream": stream})
        assert answer.status_code == 503


def test_an_error_of_the_step_is_500_and_not_the_clients(
    script: Script, client: httpx.Client
) -> None:
    _, url = script([RuntimeError("no"), "fine"])
    answers = [client.post(f"{url}/v1/completions", json={"prompt": "x"}) for _ in "ab"]
    assert [answer.status_code for answer in answers] == [500, 200]


def test_characters_are_never_torn(script: Script, client: httpx.Client, toy_url: str) -> None:
    """A character of several tokens comes as a whole, also from a model that writes bytes."""
    _, url = script("🎉 é 漢字 🎉", piece=1)
    chunks = events(client.post(f"{url}/v1/completions", json={"prompt": "x", "stream": True}))
    assert "".join(c["choices"][0]["text"] for c in chunks) == "🎉 é 漢字 🎉"
    body = {"prompt": "x", "max_tokens": 200, "regex": "(🎉|漢)+", "stream": True, "seed": 1}
    chunks = events(client.post(f"{toy_url}/v1/completions", json=body))
    text = "".join(c["choices"][0]["text"] for c in chunks)
    assert set(text.removesuffix("\ufffd")) <= set("🎉漢")  # the limit may cut the last one


def leave(url: str, path: str, body: dict[str, Any], once: Callable[[], bool]) -> None:
    """Send a request and close the connection as soon as `once` is true."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{kind}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        eventually(once, "the moment to leave comes")
