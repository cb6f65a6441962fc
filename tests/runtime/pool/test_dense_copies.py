"""The dense path copies prefixes out of the pool one layer at a time, and is charged for it."""

from __future__ import annotations

import mlx.core as mx
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime import assembly
from sgl_mlx.runtime.pool import capacity
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.memory import copied_slots
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Extend, Row
from tests.models.toy import toy_config, toy_model
from tests.runtime.conftest import MakeEngine

LAYERS, ROWS, PREFIX = 8, 8, 2000


def dense_model() -> Adapter:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    config = toy_config("llama") | {"num_hidden_layers": LAYERS, **heads}
    return Adapter(toy_model("llama", config), ragged=False)


def scattered_rows() -> tuple[Row, ...]:
    """Rows of one new token each, whose prefixes are in every eighth slot."""
    last = ROWS * PREFIX
    return tuple(
        Row(
            id=str(i),
            tokens=(5,),
            prefix=tuple(range(1 + i, 1 + last, ROWS)),
            slots=(last + 1 + i,),
            position=PREFIX,
            sample=True,
            params=SamplingParams(temperature=0),
        )
        for i in range(ROWS)
    )


def test_a_step_of_several_rows_holds_copies_of_one_layer() -> None:
    model, rows = dense_model(), scattered_rows()
    pool = KVPool(model.layers, ROWS * (PREFIX + 1), model.dtype)
    runner = ModelRunner(model, pool, frozenset())
    runner.run(Extend(rows))  # what a first step alone allocates is not measured
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    runner.run(Extend(rows))
    held = mx.get_peak_memory() - before
    prefixes = ROWS * PREFIX * KVPool.bytes_per_slot(model.layers, model.dtype)
    assert held < 2.2 / LAYERS * prefixes, f"{held / prefixes:.2f} of all prefixes"


def test_admission_is_charged_for_the_copies(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "adapter_for", lambda model: Adapter(model, ragged=False))
    available = 50 * 2**20
    monkeypatch.setattr(capacity, "available_bytes", lambda: available)
    engine = make_engine(max_total_tokens=3000)
    runner = engine._loop.model.runner
    layers, dtype = runner._model.layers, runner._model.dtype
    limits = engine._loop.model.scheduler.limits
    assert limits.most_held == copied_slots(3000, layers, dtype, available, ragged=False)
