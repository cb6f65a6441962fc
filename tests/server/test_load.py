"""Long prompts beside streams: no chunk is skipped, and long work never runs on the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import app
from tests.runtime.conftest import toy_folder
from tests.server.conftest import ThreadServer
from tests.server.scripted import CHATML

__all__ = ["toy_folder"]

CHUNK = 64
LONG = 6000
ANSWER = 400


@pytest.fixture(scope="module")
def engine(toy_folder: Any) -> Iterator[Engine]:
    """The toy with room for long prompts, computed in small chunks."""
    options = {"context_length": 8000, "max_total_tokens": 16000, "chunked_prefill_size": CHUNK}
    with Engine(str(toy_folder), **options) as made:
        made.tokenizer.chat_template = CHATML
        yield made


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    server = ThreadServer(app(engine))
    server.open()
    yield server.url
    server.close()


def test_a_long_prompt_lets_other_streams_have_a_token_for_each_of_its_chunks(url: str) -> None:
    """Tokens are counted, not timed: each step of the long prompt also steps the stream."""
    stream = {"prompt": "x", "max_tokens": ANSWER, "ignore_eos": True, "stream": True}
    long = {"prompt": "ab" * (LONG // 2), "max_tokens": 1}
    told: list[str] = []

    async def streaming(client: httpx.AsyncClient, began: asyncio.Event) -> None:
        body = {**stream, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    told.append(line)
                    began.set()

    async def both() -> tuple[int, int]:
        async with httpx.AsyncClient(timeout=240) as client:
            began = asyncio.Event()
            task = asyncio.create_task(streaming(client, began))
            await began.wait()
            before = tokens()
            answer = await client.post(f"{url}/v1/completions", json=long)
            between = tokens() - before
            await task
            return answer.json()["usage"]["prompt_tokens"], between

    def tokens() -> int:
        return int(json.loads(told[-1].removeprefix("data: "))["usage"]["completion_tokens"])

    computed, between = asyncio.run(both())
    chunks = computed // CHUNK
    assert chunks > 40
    assert between >= min(chunks, ANSWER) * 0.9  # the last ones are under way to the client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "ab" * 3000, "max_tokens": 1}),
        ("/v1/completions", {"prompt": ["ab" * 2000, "c" * 2000], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab" * 3000}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "ab" * 3000}]}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "ab" * 3000}]}),
        ("/v1/responses", {"input": "ab" * 3000, "max_output_tokens": 1}),
        ("/generate", {"text": "ab" * 3000, "sampling_params": {"max_new_tokens": 1}}),
        ("/tokenize", {"prompt": "ab" * 3000}),
        ("/detokenize", {"tokens": [70, 71] * 3000}),
    ],
)
def test_long_texts_are_encoded_and_rendered_beside_the_event_loop(
    engine: Engine, url: str, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[str] = []
    seen: list[str] = []

    def watched(name: str) -> None:
        function = getattr(engine.tokenizer, name)

        def call(given: Any, *args: Any, **more: Any) -> Any:
            if len(str(given)) > 2000:
                seen.append(name)
                with_loop = asyncio._get_running_loop() is not None
                on_loop.extend([f"{name} on {threading.current_thread().name}"] * with_loop)
            return function(given, *args, **more)

        monkeypatch.setattr(engine.tokenizer, name, call)

    for name in ("encode", "decode", "render_chat"):
        watched(name)
    answer = httpx.post(url + path, json={"max_tokens": 1, "model": "default", **body}, timeout=240)
    assert answer.status_code == 200, answer.text
    assert seen
    assert on_loop == []
