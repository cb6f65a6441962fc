"""A pool that was given no size begins small, and grows when requests need more."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool import capacity
from sgl_mlx.runtime.pool.kv import KVPool

LAYERS = [LayerShape(2, 8, 8), LayerShape(1, 4, 16)]


@pytest.mark.parametrize("bits", [None, 8])
def test_a_larger_pool_keeps_what_it_holds(bits: int | None) -> None:
    pool = KVPool(LAYERS, 6, mx.float32, bits)
    keys = [mx.random.normal((3, x.heads, x.key_dim)) for x in LAYERS]
    values = [mx.random.normal((3, x.heads, x.value_dim)) for x in LAYERS]
    pool.write([2, 5, 6], keys, values)
    before = [[a[:] for a in x.arrays()] for x in (*pool.keys, *pool.values)]
    pool.grow(40)
    for x, old in zip((*pool.keys, *pool.values), before, strict=True):
        for array, was in zip(x.arrays(), old, strict=True):
            assert len(array) == 41
            assert mx.array_equal(array[:7], was)
            assert not mx.any(array[7:])
    pool.grow(10)
    assert pool.slots == 40


def test_requests_that_need_more_get_more(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[3 + (7 * i + j) % 250 for j in range(60 + 40 * i)] for i in range(4)]
    asked = {"max_new_tokens": 12, "temperature": 0}
    with Engine(str(toy_folder), max_total_tokens=4000) as engine:
        expected = engine.generate(input_ids=prompts, sampling_params=asked)
    monkeypatch.setattr(capacity, "ENOUGH", 64)
    with Engine(str(toy_folder)) as engine:
        first = engine.generate(input_ids=prompts[0][:20], sampling_params=asked)
        small = engine.get_server_info()["stats"]
        found = engine.generate(input_ids=prompts, sampling_params=asked)
        stats = engine.get_server_info()["stats"]
    assert first["meta_info"]["completion_tokens"] == 12
    assert small["free_slots"] + small["cached_slots"] == 64
    assert [r["output_ids"] for r in found] == [r["output_ids"] for r in expected]
    assert stats["free_slots"] + stats["cached_slots"] > 4 * 64
    assert stats["preemptions"] == 0
