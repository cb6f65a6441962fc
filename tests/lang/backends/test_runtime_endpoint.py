"""The HTTP backend against a small server on loopback that answers as SGLang does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.errors import BackendError, NotYetError
from sgl_mlx.lang.backend import Backend

META = {
    "id": "r1",
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "cached_tokens": 3,
    "finish_reason": {"type": "stop", "matched": "\n"},
}
# what the server says of the tokens of each scored text: one of look-back, then the choice
SCORED = {
    "Is it? yes": [[-9.0, 7, "?"], [-2.0, 8, " yes"]],
    "Is it? no": [[-9.0, 7, "?"], [-0.5, 9, " no"]],
}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[str, Any, Any]] = []
        self.model_path = "Qwen/Qwen2.5-7B-Instruct"
        self.refuses_lists = False


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._note(None)
        self._send({"model_path": self.server.model_path, "path": self.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        payload = json.loads(body) if body else None
        self._note(payload)
        if self.path == "/flush_cache":
            self._send({})
        elif self.server.refuses_lists and isinstance(payload.get("text"), list):
            self._send({"error": "text must be a string"}, 422)
        elif "boom" in str(payload.get("text", "")):
            self._send({"error": "boom"}, 400)
        elif payload.get("stream"):
            self._stream(["Hel", "Hello", "Hello!"])
        else:
            self._send(answer(payload))

    def _note(self, payload: Any) -> None:
        self.server.received.append((self.path, payload, self.headers.get("Authorization")))

    def _send(self, document: Any, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, texts: list[str]) -> None:
        self.send_response(200)
        self.end_headers()
        for text in texts:
            event = json.dumps({"text": text, "meta_info": META})
            self.wfile.write(f"data: {event}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def scored(text: str) -> dict[str, Any]:
    return {"text": "", "meta_info": {**META, "input_token_logprobs": SCORED[text]}}


def answer(payload: dict[str, Any]) -> Any:
    if "input_ids" in payload:
        alone = [[[None, ids[0], None]] for ids in payload["input_ids"]]
        return [{"text": "", "meta_info": {**META, "input_token_logprobs": row}} for row in alone]
    if isinstance(payload["text"], list):
        return [scored(text) for text in payload["text"]]
    if payload["text"] in SCORED and payload.get("return_logprob"):
        return scored(payload["text"])
    several = payload["sampling_params"].get("n", 1)
    outputs = [{"text": f"out{i}", "meta_info": META} for i in range(several)]
    return outputs if several > 1 else outputs[0]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def backend(server: Server) -> Iterator[sgl.RuntimeEndpoint]:
    endpoint = sgl.RuntimeEndpoint(f"http://127.0.0.1:{server.server_port}/", api_key="secret")
    yield endpoint
    endpoint.shutdown()


@sgl.function
def program(s: Any, prompt: str, **sampling: Any) -> None:
    s += prompt + sgl.gen("x", **sampling)


def test_it_is_a_backend(backend: sgl.RuntimeEndpoint) -> None:
    assert isinstance(backend, Backend)


def test_a_request_has_sglangs_payload(server: Server, backend: sgl.RuntimeEndpoint) -> None:
    sampling = {"temperature": 0.5, "stop": ["\n"], "max_new_tokens": 7, "logit_bias": {9: 2}}
    state = program.run("hi", backend=backend, **sampling)
    assert state.text() == "hiout0"
    path, payload, authorization = server.received[-1]
    assert (path, authorization, payload["text"]) == ("/generate", "Bearer secret", "hi")
    sampling = payload["sampling_params"]
    assert (sampling["temperature"], sampling["stop"]) == (0.5, ["\n"])
    assert (sampling["max_new_tokens"], sampling["logit_bias"]) == (7, {"9": 2.0})
    assert "regex" not in sampling
    assert state.get_meta_info("x") == META


def test_several_samples_come_as_a_list(backend: sgl.RuntimeEndpoint) -> None:
    assert program.run("hi", backend=backend, n=2)["x"] == ["out0", "out1"]


def test_a_dtype_is_sent_as_its_regex(server: Server, backend: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    def number(s: Any) -> None:
        s += sgl.gen_int("x")

    number.run(backend=backend).sync()
    sampling = server.received[-1][1]["sampling_params"]
    assert sampling["regex"].startswith("[-+]?[0-9]+")
    assert sampling["stop"] == [" ", "\n"]


def test_streamed_events_become_pieces(backend: sgl.RuntimeEndpoint) -> None:
    state = program.run("hi ", backend=backend, stream=True)
    assert "".join(state.text_iter("x")) == "Hello!"
    assert state.get_meta_info("x")["completion_tokens"] == 2


@pytest.mark.parametrize("refuses_lists", [False, True])
def test_select_scores_every_choice_and_drops_the_unhealed_look_back(
    server: Server, backend: sgl.RuntimeEndpoint, refuses_lists: bool
) -> None:
    server.refuses_lists = refuses_lists  # as SGLang's router does

    @sgl.function
    def choose(s: Any) -> None:
        s += "Is it?" + sgl.select("x", [" yes", " no"])

    state = choose.run(backend=backend)
    assert state["x"] == " no"
    assert state.get_meta_info("x")["input_token_logprobs"] == [
        [[-2.0, 8, " yes"]],
        [[-0.5, 9, " no"]],
    ]
    assert server.received[-1][1]["logprob_start_len"] == META["prompt_tokens"] - 2  # type: ignore[operator]


def test_unconditional_scores_send_the_choices_tokens_alone(
    server: Server, backend: sgl.RuntimeEndpoint
) -> None:
    @sgl.function
    def choose(s: Any) -> None:
        method = sgl.unconditional_likelihood_normalized
        s += "Is it?" + sgl.select("x", [" yes", " no"], choices_method=method)

    assert choose.run(backend=backend)["x"] == " no"
    assert server.received[-1][1]["input_ids"] == [[8], [9]]


def test_the_chat_template_follows_the_model_or_its_name_and_can_be_set(
    server: Server, backend: sgl.RuntimeEndpoint
) -> None:
    assert backend.chat_template.name == "qwen"
    assert backend.get_model_name() == server.model_path
    named = sgl.RuntimeEndpoint(backend.base_url, chat_template_name="chatml")
    assert named.chat_template.name == "chatml"
    backend.chat_template = named.chat_template

    @sgl.function
    def chat(s: Any) -> None:
        s += sgl.user("hi") + sgl.assistant(sgl.gen("x"))

    assert chat.run(backend=backend).text().startswith("<|im_start|>user\nhi<|im_end|>")
    named.shutdown()


def test_forks_warm_the_servers_cache(server: Server, backend: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    def branch(s: Any) -> None:
        s += "shared"
        s.fork(2)

    branch.run(backend=backend).sync()
    payload = server.received[-1][1]
    assert (payload["text"], payload["sampling_params"]["max_new_tokens"]) == ("shared", 0)


def test_cache_and_info_calls_reach_the_server(
    server: Server, backend: sgl.RuntimeEndpoint
) -> None:
    assert backend.flush_cache() is True
    assert backend.get_server_info()["path"] == "/get_server_info"
    backend.cache_prefix("text")
    assert server.received[-1][1]["text"] == "text"


def test_a_refusal_says_what_the_server_said(backend: sgl.RuntimeEndpoint) -> None:
    with pytest.raises(BackendError, match=r"/generate answered 400: .*boom"):
        program.run("boom", backend=backend)["x"]


def test_a_server_that_is_not_there_is_an_error() -> None:
    nobody = sgl.RuntimeEndpoint("http://127.0.0.1:9", chat_template_name="chatml")
    with pytest.raises(BackendError, match=r"no usable answer from 'http://127\.0\.0\.1:9"):
        nobody.cache_prefix("x")
    nobody.shutdown()


def test_what_a_server_cannot_do_is_not_yet(backend: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    def shifted(s: Any) -> None:
        forks = s.fork(1, position_ids_offset=[4])
        forks += "a" + sgl.gen("x")
        forks.join()

    with pytest.raises(NotYetError, match="position_ids_offset"):
        shifted.run(backend=backend)


class Stubborn(Handler):
    """Answers every request with the bytes that the test sets."""

    body = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)


def event(text: str, reason: object = None, **more: Any) -> bytes:
    meta = {**META, "finish_reason": reason}
    document = {"text": text, "meta_info": meta, **more}
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


STOP = {"type": "stop", "matched": 2}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (event("Hé") + event("Héllo", STOP) + b"data: [DONE]\n\n", "Héllo"),
        (event("Hé") + event("Héllo", STOP), "Héllo"),
        (event("Hé") + event("llo") + event("!", STOP), "Héllo!"),
        (b": hi\n\nevent: message\nid: 1\n" + event("Héllo", STOP), "Héllo"),
        ((event("Hé") + event("Héllo", STOP)).replace(b"\n", b"\r\n"), "Héllo"),
        (event("a", STOP, index=0) + event("other", STOP, index=1), "a"),
    ],
)
def test_streams_of_every_kind_of_server_are_read(server: Server, body: bytes, text: str) -> None:
    endpoint = _stubborn(server, body)
    state = program.run("hi ", backend=endpoint, stream=True)
    assert "".join(state.text_iter("x")) == text == state["x"]
    endpoint.shutdown()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (event("He") + b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (event("He") + b'data: {"text": "Hel', "cut off"),
        (event("He"), "ended early"),
        (b"", "ended early"),
        (event("", {"type": "abort", "message": "too long", "status_code": 400}), "too long"),
        (b'data: {"meta_info": {}}\n\n', "without text"),
        (b"data: [1]\n\n", "instead of an object"),
    ],
)
def test_streams_that_fail_say_why(server: Server, body: bytes, message: str) -> None:
    endpoint = _stubborn(server, body)
    state = program.run("hi ", backend=endpoint, stream=True)
    with pytest.raises(BackendError, match=message):
        state["x"]
    endpoint.shutdown()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "out of memory"}}', "out of memory"),
        (b'{"object": "error", "message": "busy"}', "busy"),
        (b'{"detail": "nothing"}', "without text"),
        (b'"text"', "instead of an object"),
        (b"<html>", "no usable answer"),
    ],
)
def test_errors_inside_good_answers_are_errors(server: Server, body: bytes, message: str) -> None:
    endpoint = _stubborn(server, body)
    with pytest.raises(BackendError, match=message):
        program.run("hi ", backend=endpoint)["x"]
    endpoint.shutdown()


def _stubborn(server: Server, body: bytes) -> sgl.RuntimeEndpoint:
    server.RequestHandlerClass = type("Once", (Stubborn,), {"body": body})
    return sgl.RuntimeEndpoint(f"http://127.0.0.1:{server.server_port}")
