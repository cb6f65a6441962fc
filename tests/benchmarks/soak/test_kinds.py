"""Every kind of request of a soak is answered by our server, and wrong answers are noticed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sgl_mlx.benchmarks.soak.kinds import Kind, kinds
from sgl_mlx.benchmarks.soak.run import Outcome, send
from sgl_mlx.benchmarks.soak.visit import Facts
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import app
from tests.runtime.conftest import toy_folder
from tests.server.conftest import ThreadServer
from tests.server.scripted import CHATML

__all__ = ["toy_folder"]

KINDS = {kind.name: kind for kind in kinds(Facts(longest=100, slots=3000, pictures=True))}
OF_TEXT = [kind for kind in KINDS.values() if not kind.pictures]
Answers = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def url(toy_folder: Any) -> Iterator[str]:
    with Engine(str(toy_folder), context_length=1500, max_total_tokens=3000) as engine:
        engine.tokenizer.chat_template = CHATML
        server = ThreadServer(app(engine, api_keys=["one", "two"]))
        server.open()
        yield server.url
        server.close()


def sent(kind: Kind, facts: Facts, count: int, **client: Any) -> list[Outcome]:
    async def all_of_them() -> list[Outcome]:
        async with httpx.AsyncClient(timeout=120, **client) as http:
            draw = random.Random(0)
            return [await send(http, facts, kind, draw) for _ in range(count)]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("kind", OF_TEXT, ids=lambda kind: kind.name)
def test_our_server_answers_every_kind(url: str, kind: Kind) -> None:
    facts = Facts(longest=100, slots=3000, keys=("one", "two"))
    count = 40 if kind.name in ("bad request", "operation") else 4
    assert [outcome.error for outcome in sent(kind, facts, count, base_url=url)] == [None] * count


def chunk(**choice: Any) -> str:
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


LIES: dict[str, tuple[str, list[httpx.Response]]] = {
    "no end": ("chat", [httpx.Response(200, text=chunk(finish_reason=None, text="a"))]),
    "a failure": ("chat", [httpx.Response(500, json={"error": {"message": "oh"}})]),
    "an error in the stream": ("chat", [httpx.Response(200, text='data: {"error": "oh"}\n\n')]),
    "one sample": ("samples", [httpx.Response(200, json={"choices": [{"index": 0}]})]),
    "another text": (
        "same again",
        [httpx.Response(200, json={"choices": [{"text": text}]}) for text in "abcdef"],
    ),
    "not by the schema": (
        "schema",
        [
            httpx.Response(
                200,
                json={
                    "choices": [{"finish_reason": "stop", "message": {"content": '{"good": 1}'}}]
                },
            )
        ],
    ),
    "not by the regex": (
        "regex",
        [httpx.Response(200, json={"text": "7", "meta_info": {"finish_reason": {"type": "stop"}}})],
    ),
    "no refusal": ("bad request", [httpx.Response(200, json={})]),
    "no message": ("bad request", [httpx.Response(400, json={"error": {"message": ""}})]),
    "a crash": ("bad request", [httpx.Response(500, json={"error": {"message": "oh"}})]),
    "no health": ("operation", [httpx.Response(503)]),
    "no JSON": ("decision", [httpx.Response(200, text="<html>")]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_answer_is_an_error_with_a_reason(lie: str) -> None:
    name, answers = LIES[lie]
    told = iter(answers * 6)
    transport = httpx.MockTransport(lambda _: next(told))
    count = len(answers)
    found = sent(KINDS[name], Facts(10, 10), count, base_url="http://x", transport=transport)
    assert found[-1].error
    assert found[-1].kind == name


def test_a_text_may_have_any_line_separators() -> None:
    body = chunk(finish_reason="stop", text="@").replace("@", "\u2028 \u2029 \x85").encode()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    [outcome] = sent(KINDS["chat"], Facts(10, 10), 1, base_url="http://x", transport=transport)
    assert outcome.error is None


def test_a_server_that_is_gone_is_an_error() -> None:
    [outcome] = sent(KINDS["chat"], Facts(10, 10), 1, base_url="http://127.0.0.1:9")
    assert outcome.error is not None
    assert outcome.error.startswith("ConnectError")
