"""`Runtime`: SGLang's shape of a server around an engine in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Text
from sgl_mlx.testing import ByteTokenizer, ScriptedBackend


class FakeEngine(ScriptedBackend):
    """An engine as far as `Runtime` sees one."""

    def __init__(self, **server_args: Any) -> None:
        super().__init__("out")
        self.server_args = server_args
        self.tokenizer = ByteTokenizer()
        self.asked: list[tuple[Any, ...]] = []
        self.running = True

    def generate(self, prompt: str, sampling_params: Any = None, **options: Any) -> Any:
        self.asked.append((prompt, sampling_params, options))
        return {"text": "out", "meta_info": {"prompt_tokens": 2}}

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def cache_prefix(self, prefix: str) -> None:
        self.prefill((Text(prefix),)).result()

    async def async_generate(
        self, prompt: str, sampling_params: Any = None, stream: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        assert stream

        async def events() -> AsyncIterator[dict[str, Any]]:
            for text in ("o", "out"):
                yield {"text": text}

        return events()

    def shutdown(self) -> None:
        self.running = False


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("sgl_mlx.compat.engine")
    module.Engine = FakeEngine
    monkeypatch.setitem(sys.modules, "sgl_mlx.compat.engine", module)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("smollm2",), {}),
        (("error", 60.0), {"model_path": "smollm2"}),
        ((), {"model_path": "smollm2", "log_level": "info"}),
    ],
)
def test_the_model_comes_by_name_or_first_as_in_old_versions(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    runtime = sgl.Runtime(*args, **kwargs)
    assert runtime.server_args == {"model_path": "smollm2"}


def test_programs_run_on_a_runtime() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a " + sgl.gen("x")

    with sgl.Runtime("smollm2") as runtime:
        assert program.run(backend=runtime).text() == "a out"
        engine: Any = runtime.endpoint
        assert engine.running
    assert not engine.running


def test_generate_returns_json_and_passes_what_was_given() -> None:
    runtime = sgl.Runtime("smollm2")
    answer = json.loads(runtime.generate("hi", {"temperature": 0}, return_logprob=True))
    assert answer["text"] == "out"
    engine: Any = runtime.endpoint
    assert engine.asked == [("hi", {"temperature": 0}, {"return_logprob": True})]
    runtime.generate("hi", return_logprob=True, logprob_start_len=0, lora_path=None)
    assert engine.asked[1][2] == {"return_logprob": True, "logprob_start_len": 0}


def test_async_generate_yields_what_is_new() -> None:
    runtime = sgl.Runtime("smollm2")

    async def collect() -> list[str]:
        return [piece async for piece in runtime.async_generate("hi")]

    assert asyncio.run(collect()) == ["o", "ut"]


def test_the_rest_of_the_surface_reaches_the_engine() -> None:
    runtime = sgl.Runtime("smollm2")
    engine: Any = runtime.endpoint
    runtime.cache_prefix("text")
    assert engine.prefills == ["text"]
    assert runtime.get_tokenizer() is engine.tokenizer
    assert runtime.flush_cache() is True
    assert asyncio.run(runtime.get_server_info())["model_path"] == "scripted"
    assert runtime.url is None
