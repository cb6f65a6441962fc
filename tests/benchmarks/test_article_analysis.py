"""The article analysis asks and returns the same as a program and over HTTP, for any article."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from sgl_mlx.benchmarks.article_analysis import program
from sgl_mlx.benchmarks.article_analysis.http import Server, ServerError, analyse
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE

ARTICLE = "Mira Vale sings again. The hall was full."

ANSWERS = {
    "name: ": '"Mira Vale"',
    "occupation: ": '"singer"',
    "birth year: ": "1961",
    "number of awards: ": "12",
    "Introduction:": " A voice of her time.\nMore",
    "Summary:": " A concert took place.\n",
    **{f"{number}.": f" Part {number}\n" for number in range(1, 5)},
    **{f"Section Part {number}:\n": f"Text {number}." for number in range(1, 5)},
}

Answer = Callable[[dict[str, Any]], tuple[int, str]]
"""Status and body for a request."""


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[Server, list[dict[str, Any]]]]:
    """A client of a completion server in this process, and the requests it gets."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(request)
            status, body = answer(request)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            with httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False) as http:
                yield Server(http, pause=0), asked
        finally:
            server.shutdown()


def text(said: str) -> str:
    return json.dumps({"choices": [{"text": said}]})


def scripted(choice: str) -> Answer:
    backend = ScriptedBackend({**ANSWERS, "celebrity?": choice})

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        params = SamplingParams(max_new_tokens=request["max_tokens"], stop=request["stop"])
        [done] = backend.submit((Text(request["prompt"]),), params).result()
        return 200, text(done.text)

    return answer


def in_order(prompts: list[str]) -> list[str]:
    """The last four are asked side by side."""
    return [*prompts[:-4], *sorted(prompts[-4:])]


@pytest.mark.parametrize("choice", [" yes", " no"])
def test_both_ask_the_same_and_find_the_same(choice: str) -> None:
    backend = ScriptedBackend(ANSWERS, logprobs={choice: -0.1})
    state = program.analyse.run(ARTICLE, backend=backend)
    with serving(scripted(choice)) as (server, asked):
        found = analyse(server, ARTICLE)
    calls = [call for call in backend.calls if call.kind in ("submit", "score")]
    assert in_order([x["prompt"] for x in asked]) == in_order([call.text for call in calls])
    limits = [call.params.max_new_tokens for call in calls if call.params]
    assert sorted(x["max_tokens"] for x in asked[1:]) == sorted(limits)
    assert found == state.ret_value
    assert found["celebrity"] is (choice == " yes")


def test_a_biography_has_texts_and_numbers() -> None:
    with serving(scripted(" yes")) as (server, _):
        found = analyse(server, ARTICLE)
    assert found["biography"] == {
        "name": "Mira Vale",
        "occupation": "singer",
        "birth year": 1961,
        "number of awards": 12,
    }
    assert found["opening"] == " A voice of her time."
    assert found["report"].startswith("# Part 1\nText 1.\n\n# Part 2\n")


def test_a_busy_server_is_asked_again() -> None:
    replies = iter([(503, "loading"), (200, "no JSON"), (200, text("done"))])
    with serving(lambda request: next(replies)) as (server, asked):
        assert server.complete("Say so:", 4) == "done"
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("reply", "calls", "message"),
    [((400, "too long"), 1, "400: too long"), ((500, "down"), 3, "3 times.*500")],
)
def test_a_failure_says_what_the_server_said(
    reply: tuple[int, str], calls: int, message: str
) -> None:
    with serving(lambda request: reply) as (server, asked):
        with pytest.raises(ServerError, match=message):
            server.complete("Say so:", 4)
        assert len(asked) == calls


def test_an_answer_of_another_form_is_refused() -> None:
    with serving(lambda request: (200, text("perhaps"))) as (server, _):
        with pytest.raises(ServerError, match="'perhaps' is none of"):
            server.choose("A celebrity?", [" yes", " no"])
        with pytest.raises(ServerError, match="'perhaps' is no int"):
            server.field("birth year: ", int)
