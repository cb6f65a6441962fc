"""`/v1/embeddings` by OpenAI's client, over a toy that says how it pools."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import openai
import pytest

from sgl_mlx.models import hidden
from sgl_mlx.models.trunk import trunk_of
from sgl_mlx.runtime.engine import Engine
from tests.models.test_pooling import LAST, add_pooling
from tests.patience import eventually
from tests.runtime.conftest import write_toy
from tests.server.conftest import Sdk, Serve
from tests.server.test_hardening import leave

Open = Callable[..., Engine]
MEAN = {"pooling_mode_mean_tokens": True}
TEXTS = ["ab", "a longer text of several tokens", "ab"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """`opened(pooling, *modules)` opens a toy that makes embeddings."""
    engines: list[Engine] = []

    def _opened(pooling: Any, *modules: str) -> Engine:
        folder = add_pooling(write_toy(tmp_path / "toy"), pooling, *modules)
        engines.append(Engine(str(folder), max_total_tokens=2000))
        return engines[-1]

    yield _opened
    for engine in engines:
        engine.shutdown()


def states(engine: Engine, text: str) -> Any:
    """All hidden states of a text, computed at once."""
    ids = mx.array([engine.tokenizer.encode(text)])
    return engine.run_on_model(lambda model: np.array(trunk_of(model)(ids)[0]))


@pytest.mark.parametrize("chunk", [2, 512])
@pytest.mark.parametrize("pooling", [LAST, MEAN])
def test_the_sdk_gets_pooled_hidden_states(
    opened: Open, serve: Serve, sdk: Sdk, monkeypatch: Any, chunk: int, pooling: Any
) -> None:
    monkeypatch.setattr(hidden, "CHUNK", chunk)
    engine = opened(pooling)
    client = sdk(serve(engine)).embeddings
    answer = client.create(model="default", input=TEXTS)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    for text, entry in zip(TEXTS, answer.data, strict=True):
        found = states(engine, text)
        expected = found[-1] if pooling is LAST else found.mean(axis=0)
        np.testing.assert_allclose(entry.embedding, expected, rtol=1e-4, atol=1e-5)
    counts = [len(engine.tokenizer.encode(text)) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(counts)


def test_formats_and_forms_of_input_agree(opened: Open, serve: Serve, client: httpx.Client) -> None:
    engine = opened(LAST, "Normalize")
    url = serve(engine)
    ids = engine.tokenizer.encode("ab")

    def post(**body: Any) -> Any:
        answer = client.post(f"{url}/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["embedding"]

    vector = post(input="ab")
    assert math.hypot(*vector) == pytest.approx(1)
    for same in (["ab"], ids, [ids]):
        assert post(input=same) == pytest.approx(vector)
    packed = base64.b64decode(post(input="ab", encoding_format="base64"))
    assert np.frombuffer(packed, "<f4") == pytest.approx(vector, abs=1e-7)
    short = post(input="ab", dimensions=8)
    assert math.hypot(*short) == pytest.approx(1)
    assert short == pytest.approx([x / math.hypot(*vector[:8]) for x in vector[:8]])


def test_what_is_wrong_is_told(opened: Open, serve: Serve, client: httpx.Client, sdk: Sdk) -> None:
    engine = opened(LAST)
    url = serve(engine)
    for body, said in [
        ({"input": []}, "empty list"),
        ({"input": [["x"]]}, "list of token ids"),
        ({"input": [10**6]}, "token id 1000000"),
        ({"input": [-1]}, "token id -1"),
        ({"input": "a", "dimensions": 0}, "at least 1"),
        ({"input": "a", "dimensions": 10**6}, "at most 64"),
        ({"input": "a", "encoding_format": "words"}, "encoding_format"),
        ({"input": ["a"] * 10**5}, "100,000 texts"),
        ({"input": [5] * 12_000}, "12,000 tokens"),
        ({"input": "a" * 17_000_000}, "17,000,000 characters"),
    ]:
        answer = client.post(f"{url}/v1/embeddings", json=body)
        assert 400 <= answer.status_code < 500, answer.text
        assert said in answer.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError) as failed:
        sdk(url).embeddings.create(model="default", input="x y " * 2000)
    assert failed.value.code == "context_length_exceeded"


def test_a_model_whose_pooling_is_not_supported_says_why(
    opened: Open, serve: Serve, client: httpx.Client
) -> None:
    url = serve(opened({"pooling_mode_cls_token": True}))
    answer = client.post(f"{url}/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 404
    assert "cls_token" in answer.json()["error"]["message"]
    assert client.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_client_that_leaves_stops_the_work(
    opened: Open, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chunk is computed that was not begun when the client left."""
    monkeypatch.setattr(hidden, "CHUNK", 1)
    engine, chunks, ended = opened(LAST), [0], []
    assert engine.embedder is not None
    embed = engine.embedder.embed

    def embedded(tokens: Any, stopped: Callable[[], bool]) -> list[float]:
        def asked() -> bool:
            chunks[0] += 1
            eventually(lambda: chunks[0] < 3 or stopped(), "the request is stopped")
            return stopped()

        found = embed(tokens, asked)
        ended.append(chunks[0])
        return found

    monkeypatch.setattr(engine.embedder, "embed", embedded)
    leave(serve(engine), "/v1/embeddings", {"input": ["a b c d e"] * 9}, lambda: chunks[0] == 3)
    eventually(lambda: bool(ended), "the request has ended")
    assert ended == [3]
