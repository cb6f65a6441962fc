"""Long prompts beside streams: no chunk is skipped, and long work never runs on the event loop."""

from __future__ import annotations

import asyncio
import json
import os
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
from tests.server.steps import recorded_steps

__all__ = ["toy_folder"]

LONG = int(os.environ.get("LONG_PROMPT", "5000"))
"""Tokens of the long prompt: 100,000 take minutes."""
CHUNK = 64 if LONG < 20_000 else 1024
STREAMS = 4
ANSWER = 450
PATIENCE = 1200


@pytest.fixture(scope="module")
def engine(toy_folder: Any) -> Iterator[Engine]:
    """The toy with room for long prompts, computed in small chunks."""
    room = LONG + 3000
    options = {"context_length": room, "max_total_tokens": room, "chunked_prefill_size": CHUNK}
    with Engine(str(toy_folder), **options) as made:
        made.tokenizer.chat_template = CHATML
        yield made


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    server = ThreadServer(app(engine))
    server.open()
    yield server.url
    server.close()


def test_a_long_prompt_stalls_no_stream_by_more_than_one_of_its_chunks(url: str) -> None:
    """Steps are counted, not timed: each step with a chunk is a step of every stream."""
    names = [f"stream-{i}" for i in range(STREAMS)]
    told = dict.fromkeys(names, 0)
    stream = {"prompt": "x", "max_tokens": ANSWER, "ignore_eos": True, "stream": True}
    long = {"prompt": "ab" * LONG, "max_tokens": 1, "rid": "long"}

    async def streaming(client: httpx.AsyncClient, name: str, began: asyncio.Event) -> None:
        usage = {"include_usage": True, "continuous_usage_stats": True}
        body = {**stream, "rid": name, "stream_options": usage}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    told[name] = json.loads(line[len("data: ") :])["usage"]["completion_tokens"]
                if all(told.values()):
                    began.set()

    async def both() -> tuple[int, int]:
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            began = asyncio.Event()
            streams = [asyncio.create_task(streaming(client, name, began)) for name in names]
            await began.wait()
            before = min(told.values())
            answer = await client.post(f"{url}/v1/completions", json=long)
            between = min(told.values()) - before
            for task in streams:
                task.cancel()
            return answer.json()["usage"]["prompt_tokens"], between

    with recorded_steps() as steps:
        length, between = asyncio.run(both())
    chunks = [step for step in steps.all if "long" in step.computed]
    assert sum(step.computed["long"] for step in chunks) == length >= LONG
    assert max(step.computed["long"] for step in chunks) <= CHUNK
    assert [set(names) - step.sampled for step in chunks] == [set()] * len(chunks)
    assert between > 0.8 * len(chunks)  # the last tokens are under way to the client


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
