"""Layers with a sliding window read what the window shows, and compute the same."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Row
from tests.models.conformance import check, uncompiled
from tests.models.toy import toy_config, toy_model
from tests.models.toy_configs import WINDOW

PROMPT, CHUNK, STEPS = 120, 30, 10
ARCHITECTURES = ["gemma3_text", "gpt_oss"]


def use(chunks: type[Chunks] | type[SdpaChunks], patch: pytest.MonkeyPatch) -> None:
    def choose(self: AttentionPaths, rows: Sequence[Row]) -> Chunks | SdpaChunks:
        return chunks(self.pool, rows)

    patch.setattr(AttentionPaths, "chunks", choose)


def row(start: int, count: int, slots: int) -> Row:
    where = [1 + i * 7 % 331 for i in range(331)]
    return Row(
        id="a",
        tokens=tuple(3 + i % 90 for i in range(start, start + count)),
        prefix=tuple(where[:start]),
        slots=tuple(where[start : start + slots]),
        position=start,
        sample=True,
        params=SamplingParams(temperature=0),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunks", [Chunks, SdpaChunks])
def test_layers_with_a_window_gather_the_window(
    architecture: str, chunks: type[Chunks] | type[SdpaChunks], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(chunks, monkeypatch)
    adapter = adapter_for(toy_model(architecture, toy_config(architecture)))
    pool = KVPool(adapter.layers, 331, adapter.dtype)
    runner = ModelRunner(adapter, pool, frozenset())
    with uncompiled():
        for start in range(0, PROMPT, CHUNK):
            runner.run(Extend((row(start, CHUNK, CHUNK),)))
        for step in range(STEPS):
            opening = () if step else (row(PROMPT, 1, STEPS),)
            runner.run(Decode(("a",), STEPS, False, opening))
        runner.synchronise()
    gathers = PROMPT // CHUNK  # one for each chunk but the first, one for the epoch
    read = {x.window: pool.keys[i].tokens_read for i, x in enumerate(adapter.layers)}
    assert read.keys() == {None, WINDOW}
    assert read[WINDOW] == gathers * (WINDOW - 1)
    assert read[None] == sum(range(CHUNK, PROMPT + 1, CHUNK))
    assert all(
        x.tokens_read == read[s.window] for x, s in zip(pool.values, pool.layers, strict=True)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunks", [Chunks, SdpaChunks])
def test_distributions_are_those_of_mlx_lm(
    architecture: str, chunks: type[Chunks] | type[SdpaChunks], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(chunks, monkeypatch)
    mx.random.seed(3)
    with uncompiled():
        check(adapter_for(toy_model(architecture, toy_config(architecture))))
