"""Servers on loopback: over a toy with random weights, or over a script."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import app
from tests.runtime.conftest import smollm2, toy_folder
from tests.server.scripted import CHATML, ScriptedEngine

__all__ = ["smollm2", "toy_folder"]

Serve = Callable[..., str]
Sdk = Callable[[str], openai.OpenAI]


class ThreadServer(uvicorn.Server):
    """A server in a thread; `url` is its address."""

    def __init__(self, served: Any) -> None:
        config = uvicorn.Config(served, log_config=None, lifespan="off", timeout_keep_alive=120)
        super().__init__(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self.run, args=([self._listener],))

    def open(self) -> None:
        self._thread.start()
        while not self.started:
            time.sleep(0.005)

    def close(self) -> None:
        self.should_exit = self.force_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture(scope="session")
def toy_engine(toy_folder: Any) -> Iterator[Engine]:
    """The toy, with a chat template; without drafts, which round as the machine's load has it."""
    with Engine(str(toy_folder), max_total_tokens=4000, speculate="off") as engine:
        engine.tokenizer.chat_template = CHATML
        yield engine


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(engine, **options)` returns the address of a server that ends with the test."""
    servers: list[ThreadServer] = []

    def _serve(engine: Any, **options: Any) -> str:
        servers.append(ThreadServer(app(engine, **options)))
        servers[-1].open()
        return servers[-1].url

    yield _serve
    for server in servers:
        server.close()


@pytest.fixture
def script(serve: Serve) -> Callable[..., tuple[ScriptedEngine, str]]:
    """`script(replies, **options)` returns a scripted engine and the address that serves it."""

    def _script(replies: Any = "an answer", **options: Any) -> tuple[ScriptedEngine, str]:
        served = {k: options.pop(k) for k in ("limits", "api_keys", "any_model") if k in options}
        engine = ScriptedEngine(replies, **options)
        return engine, serve(engine, **served)

    return _script


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=180) as made:
        yield made


@pytest.fixture
def sdk() -> Iterator[Sdk]:
    """`sdk(url)` returns OpenAI's client of a server."""
    made: list[openai.OpenAI] = []

    def _sdk(url: str) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield _sdk
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def toy_url(toy_engine: Engine) -> Iterator[str]:
    """The address of a server over the toy."""
    server = ThreadServer(app(toy_engine, model_names=["toy"]))
    server.open()
    yield server.url
    server.close()


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream; it must end with `[DONE]`."""
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
