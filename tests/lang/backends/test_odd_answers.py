"""Odd answers of OpenAI-like APIs, through the real client over a transport without a network."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BackendError
from sgl_mlx.lang.backends import openai_wire as wire

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5)
PARTS = st.lists(st.fixed_dictionaries({}, optional={"type": SCALARS, "text": SCALARS}), max_size=2)
CONTENTS = SCALARS | PARTS | st.lists(SCALARS, max_size=2)
TURNS = st.none() | st.fixed_dictionaries({}, optional={"content": CONTENTS, "refusal": SCALARS})
CHOICES = st.none() | st.lists(
    st.fixed_dictionaries({}, optional={"message": TURNS, "delta": TURNS, "text": CONTENTS}),
    max_size=2,
)
USAGES = st.none() | st.fixed_dictionaries({}, optional={"prompt_tokens": SCALARS})
ANSWERS = st.fixed_dictionaries({}, optional={"choices": CHOICES, "usage": USAGES}) | SCALARS
JUNK = st.sampled_from([b"", b"<html>", b'{"a":', b"\xff", b"data: {x\n\n", b"data: [DONE]\n\n"])


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(JUNK | ANSWERS.map(lambda answer: json.dumps(answer).encode()), st.booleans(), st.booleans())
def test_odd_answers_give_a_text_or_an_error_of_ours(body: bytes, stream: bool, chat: bool) -> None:
    sent = b"data: " + body + b"\n\n" if stream and not body.startswith(b"data") else body
    kind = "text/event-stream" if stream else "application/json"

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=sent, headers={"content-type": kind})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        api = openai.OpenAI(base_url="http://host/v1", api_key="x", http_client=http, max_retries=0)
        backend = sgl.OpenAI("gpt-x", is_chat_model=chat, client=api)
        prompt = (Text("<|im_start|>assistant\n" if chat else "a"),)
        events: list[Any] = []
        future = backend.submit(prompt, SamplingParams(), events.append if stream else None)
        try:
            [*samples] = future.result(20)
        except BackendError as error:
            told = str(error)
        else:
            told = "gpt-x"
            assert all(isinstance(sample.text, str) for sample in samples)
        assert "gpt-x" in told or "the API" in told


def test_content_in_parts_gives_its_texts() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yo"}]
    choice = SimpleNamespace(message=SimpleNamespace(content=[*parts, {"text": "!"}]))
    assert wire.text_of(choice) == "yo!"


def test_an_answer_that_is_no_stream_is_no_empty_answer() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": "yo"}}]})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        api = openai.OpenAI(base_url="http://host/v1", api_key="x", http_client=http)
        backend = sgl.OpenAI("gpt-x", client=api)
        asked = backend.submit((Text("<|im_start|>assistant\n"),), SamplingParams(), print)
        with pytest.raises(BackendError, match="answered without choices"):
            asked.result(20)


def test_a_missing_key_and_an_address_without_server_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match=r"no client of OpenAI's API: .*OPENAI_API_KEY"):
        sgl.OpenAI("gpt-x")
    backend = sgl.OpenAI("gpt-x", base_url="http://127.0.0.1:1/v1", api_key="x", max_retries=0)
    asked = backend.submit((Text("<|im_start|>assistant\n"),), SamplingParams())
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:1"):
        asked.result(20)
