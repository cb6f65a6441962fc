"""Window slots fit into memory beside the other layers, and suffice for one sequence at least."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import MemoryLimitError
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.pool.kv import KVPool, windowed
from sgl_mlx.runtime.pool.memory import SHARE, pool_slots
from sgl_mlx.runtime.pool.window_memory import window_budget
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits

FULL = LayerShape(2, 64, 64)


def layers_of(full: int, sliding: int, window: int) -> list[LayerShape]:
    return [FULL] * full + [FULL._replace(window=window)] * sliding


@given(
    full=st.integers(1, 4),
    sliding=st.integers(1, 8),
    window=st.integers(2, 2000),
    running=st.integers(1, 64),
    step=st.integers(1, 600),
    megabytes=st.integers(1, 4000),
    wanted=st.none() | st.integers(1, 50_000),
    kv_bits=st.sampled_from([None, 8]),
)
def test_both_kinds_of_layers_fit_or_are_refused(
    full: int,
    sliding: int,
    window: int,
    running: int,
    step: int,
    megabytes: int,
    wanted: int | None,
    kv_bits: int | None,
) -> None:
    layers, room = layers_of(full, sliding, window), megabytes * 2**20
    limits = SchedulerLimits(max_running=running, step_tokens=step)
    try:
        budget = window_budget(layers, mx.float16, kv_bits, (wanted, None), limits, room)
        left = budget.left(room)
        slots = pool_slots(wanted, 4096, budget.others, mx.float16, left, kv_bits)
    except MemoryLimitError:
        return
    assert budget.slots is not None
    assert 0 < budget.slots.first <= budget.slots.most
    enough = min(2 * window + step, wanted or 2 * window + step)
    assert budget.slots.most >= enough
    kept = [x for i, x in enumerate(layers) if i in windowed(layers)]
    taken = budget.slots.most * KVPool.bytes_per_slot(kept, mx.float16, kv_bits)
    taken += slots * KVPool.bytes_per_slot(budget.others, mx.float16, kv_bits)
    assert taken <= SHARE * room


def test_long_contexts_fit_that_did_not() -> None:
    """Gemma 3 27B on 64 GB: 16 GB of weights leave room for its whole context."""
    shape = LayerShape(16, 128, 128)
    layers, room = [shape] * 10 + [shape._replace(window=1024)] * 52, 32 * 10**9
    few = SchedulerLimits(max_running=4)
    budget = window_budget(layers, mx.bfloat16, None, (131_072, None), few, room)
    wanted = pool_slots(131_072, 131_072, budget.others, mx.bfloat16, budget.left(room))
    assert wanted == 131_072
    with pytest.raises(MemoryLimitError):
        pool_slots(131_072, 131_072, layers, mx.bfloat16, room)


def test_only_mixed_models_have_window_slots() -> None:
    limits = SchedulerLimits()
    for layers in (layers_of(3, 0, 8), layers_of(0, 3, 8), [*layers_of(1, 1, 1)]):
        budget = window_budget(layers, mx.float16, None, (None, None), limits, 10**9)
        assert budget.slots is None
        assert list(budget.others) == layers
        assert budget.left(123) == 123
