"""Buffers that MLX's allocator keeps stay few, however long a prompt is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.memory import Garbage
from tests.conftest import SHOWN
from tests.models.conftest import LLAMA, write_folder
from tests.models.toy import toy_model

TOKENS = 8192
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
KV_BYTES = TOKENS * LLAMA.full_config()["num_hidden_layers"] * 2 * 4 * 64 * 4


@pytest.fixture
def _unlimited() -> Iterator[None]:
    """The allocator's limit as a Mac has it: more than any test needs."""
    before = mx.set_cache_limit(2**40)
    yield
    mx.set_cache_limit(before)
    mx.clear_cache()


@pytest.mark.usefixtures("_unlimited")
def test_a_long_prompt_leaves_little_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    found: list[int] = []
    clear = Garbage.clear

    def clear_and_look(garbage: Garbage) -> None:
        clear(garbage)
        found.append(mx.get_cache_memory())

    monkeypatch.setattr(Garbage, "clear", clear_and_look)
    config = {**LLAMA.full_config(), **WIDE}
    weights = dict(tree_flatten(toy_model("llama", config).parameters()))
    folder = write_folder(tmp_path / "wide", config, {n: np.array(x) for n, x in weights.items()})
    with Engine(str(folder), context_length=TOKENS + 8, max_total_tokens=TOKENS + 64) as engine:
        engine.run_on_model(lambda _: mx.clear_cache())
        ids = [1 + i % 90 for i in range(TOKENS)]
        engine.generate(input_ids=ids, sampling_params={"max_new_tokens": 1})
        left: Any = engine.run_on_model(lambda _: mx.get_cache_memory())
    told = f"garbage of {TOKENS:,} tokens: at most {max(found) / KV_BYTES:.2f} x their KV"
    record_property(SHOWN, f"{told} after a step, {left / KV_BYTES:.2f} x at the end")
    assert len(found) >= TOKENS // 512
    assert max(found) <= KV_BYTES / 2
    assert left <= KV_BYTES / 2


def test_the_limit_follows_the_pool_and_is_bounded() -> None:
    assert [Garbage(n).limit >> 20 for n in (2**26, 2**28, 2**40)] == [8, 32, 512]
