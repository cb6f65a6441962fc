"""Rows over a pool of random keys and values, for the tests of `epoch` and `extend`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.attention.spans import MIN_SHARED
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row
from tests.runtime import plain

LAYERS = [LayerShape(2, 8, 8)] * 2
HEADS, SCALE = 6, 0.4
SLOTS = 700
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}


@dataclass(frozen=True)
class Case:
    """Attention of one step: everything but the queries, keys and values."""

    window: int | None
    sinks: Any
    softcap: float | None

    @property
    def options(self) -> AttentionOptions:
        sinks = None if self.sinks is None else mx.array(self.sinks)
        return AttentionOptions(SCALE, self.window, self.softcap, sinks)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sinks = np.linspace(-2, 2, HEADS).astype(np.float32) if draw(st.booleans()) else None
    window = draw(st.sampled_from([None, 1, 7, 40, 300]))
    return Case(window, sinks, draw(st.sampled_from([None, None, 0.7])))


@st.composite
def rows(draw: st.DrawFn, most_tokens: int, slots_ahead: int = 0) -> list[Row]:
    """One to five rows; some go on from others' prefixes, one may stand after a position gap."""
    free = [1 + i * 13 % SLOTS for i in range(SLOTS)]
    prefixes: list[tuple[int, ...]] = [()]
    found = []
    for i in range(draw(st.integers(1, 5))):
        parent = draw(st.sampled_from(prefixes))
        kept = draw(st.sampled_from([0, len(parent) // 2, len(parent)]))
        own = draw(st.sampled_from([0, 1, 3, MIN_SHARED, MIN_SHARED + 9]))
        prefix = (*parent[:kept], *(free.pop(0) for _ in range(own)))
        prefixes.append(prefix)
        count = draw(st.integers(1, most_tokens))
        slots = tuple(free.pop(0) for _ in range(count + slots_ahead))
        found.append(row(f"r{i}", prefix, count, slots))
    if draw(st.booleans()):
        found.append(row("gap", found[0].prefix, 1, (free.pop(0),) * (1 + slots_ahead), gap=11))
    return found


@st.composite
def trees(draw: st.DrawFn, slots_ahead: int) -> list[Row]:
    """Rows that are the leaves of a prefix tree of up to three levels, its stretches of any
    length; one more may stand after a position gap."""
    free = iter([1 + i * 13 % SLOTS for i in range(SLOTS)])
    lengths = st.sampled_from([0, 2, MIN_SHARED - 1, MIN_SHARED, MIN_SHARED + 9])
    nodes: list[tuple[int, ...]] = [()]
    for _ in range(draw(st.integers(1, 3))):
        branches = [draw(st.integers(1, 3)) if len(nodes) < 3 else 1 for _ in nodes]
        nodes = [
            (*prefix, *islice(free, draw(lengths)))
            for prefix, count in zip(nodes, branches, strict=True)
            for _ in range(count)
        ]
    nodes += [draw(st.sampled_from(nodes)) for _ in range(draw(st.integers(0, 3)))]
    gaps = [0] * (len(nodes) - 1) + [draw(st.sampled_from([0, 11]))]
    return [
        row(f"r{i}", prefix, 1, (next(free),) * (1 + slots_ahead), gap)
        for i, (prefix, gap) in enumerate(zip(nodes, gaps, strict=True))
    ]


def row(
    name: str, prefix: tuple[int, ...], count: int, slots: tuple[int, ...], gap: int = 0
) -> Row:
    return Row(
        id=name,
        tokens=(0,) * count,
        prefix=prefix,
        slots=slots,
        position=len(prefix) + gap,
        sample=True,
        params=SamplingParams(),
        prefix_positions=tuple(range(len(prefix))) if gap else None,
    )


def random_array(seed: int, *shape: int) -> mx.array:
    draw = np.random.default_rng(seed)
    return mx.array(draw.normal(0, 1.2, shape).astype(np.float32))


def random_pool(softcap: float | None = None) -> KVPool:
    """Fill a pool of layers with this soft-cap; on a GPU the choice of attention depends on it."""
    pool = KVPool([layer._replace(softcap=softcap) for layer in LAYERS], SLOTS, mx.float32)
    count = list(range(1, SLOTS + 1))
    keys = [random_array(i, SLOTS, x.heads, x.key_dim) for i, x in enumerate(LAYERS)]
    values = [random_array(i + 50, SLOTS, x.heads, x.value_dim) for i, x in enumerate(LAYERS)]
    pool.write(count, keys, values)
    return pool


def expected(
    pool: KVPool, row: Row, case: Case, layer: int, queries: Any, own: tuple[Any, Any]
) -> Any:
    """Attend for the last `len(queries)` tokens of a row, whose own keys and values are given."""
    past = pool.gather(layer, SlotIndex(row.prefix)) if row.prefix else (own[0][:0], own[1][:0])
    keys, values = (
        np.concatenate([np.array(a), np.array(b)]) for a, b in zip(past, own, strict=True)
    )
    new = range(row.position, row.position + len(own[0]))
    positions = [*(row.prefix_positions or range(len(row.prefix))), *new]
    seen = plain.causal(new[len(new) - len(queries) :], positions, case.window)
    scaled = np.array(queries) * SCALE
    return plain.attention(scaled, keys, values, seen, case.sinks, case.softcap)
