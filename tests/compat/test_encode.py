"""`Engine.encode`: embeddings of prompts, by SGLang's names."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.compat.engine import Engine
from sgl_mlx.compat.runtime import Runtime
from sgl_mlx.errors import NotYetError, PromptError
from tests.runtime.conftest import write_toy

PROMPTS = ["one", "two words", "a longer prompt of more words " * 12]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = write_toy(tmp_path_factory.mktemp("encode") / "toy")
    with Engine(str(folder), max_total_tokens=2000) as opened:
        yield opened


def test_embeddings_have_length_one_and_tell_prompts_apart(engine: Any) -> None:
    answers = engine.encode(PROMPTS)
    rows = [answer["embedding"] for answer in answers]
    for row, answer, prompt in zip(rows, answers, PROMPTS, strict=True):
        assert math.isclose(math.hypot(*row), 1, rel_tol=1e-6)
        assert answer["meta_info"]["prompt_tokens"] == len(engine.tokenizer.encode(prompt))
    assert max(math.dist(rows[0], row) for row in rows[1:]) > 0.1


def test_one_prompt_is_embedded_as_in_a_batch_and_as_token_ids(engine: Any) -> None:
    for prompt, batched in zip(PROMPTS, engine.encode(PROMPTS), strict=True):
        alone = engine.encode(prompt)["embedding"]
        by_ids = engine.encode(input_ids=engine.tokenizer.encode(prompt))["embedding"]
        waited = asyncio.run(engine.async_encode(prompt))["embedding"]
        assert alone == batched["embedding"] == by_ids == waited


def test_requests_that_run_meanwhile_are_not_changed(engine: Any) -> None:
    params = {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}
    alone = engine.generate("neighbour", params)["output_ids"]
    stream = engine.generate("neighbour", params, stream=True)
    first = next(stream)
    engine.encode(PROMPTS)
    *_, last = stream
    assert first["output_ids"] + last["output_ids"][len(first["output_ids"]) :] == alone


def test_a_runtime_returns_json(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_mlx.compat.engine.Engine", lambda **_: engine)
    answer = json.loads(Runtime(model_path="toy").encode("one"))
    assert answer["embedding"] == engine.encode("one")["embedding"]


def test_what_cannot_be_embedded_is_named(engine: Any) -> None:
    with pytest.raises(NotYetError, match="image_data"):
        engine.encode("x", image_data="cat.png")
    with pytest.raises(PromptError):
        engine.encode(b"x")
    with pytest.raises(PromptError):
        engine.encode("word " * 4000)
