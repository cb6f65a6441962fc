"""M-RoPE turns by three positions as transformers does, and by equal ones as plain RoPE does."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_mlx.models.vision.qwen.config import Sections
from sgl_mlx.models.vision.qwen.rope import turn_by_grids

WIDTH, DIMS, BASE = 20, 16, 1000.0


class Attention(nn.Module):
    """A module whose rotary positions `turn_by_grids` finds."""

    def __init__(self) -> None:
        super().__init__()
        self.rope = nn.RoPE(DIMS, base=BASE)


def turning(sections: Sections) -> nn.Module:
    model = Attention()
    assert turn_by_grids(model, sections, "config.json")
    return model.rope


places = st.lists(st.tuples(*[st.integers(0, 500)] * 3), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(places, st.sampled_from([((3, 3, 2), True), ((2, 3, 3), False)]))
def test_each_frequency_turns_by_its_own_position(
    found: list[tuple[int, int, int]], given_sections: tuple[tuple[int, int, int], bool]
) -> None:
    sections = Sections(*given_sections)
    x = np.random.default_rng(len(found)).normal(size=(len(found), 2, 1, WIDTH))
    turned = turning(sections)(mx.array(x.astype(np.float32)), mx.array(found, mx.int32).T)
    half = DIMS // 2
    expected = x.copy()
    for i, axis in enumerate(sections.axes()):
        angle = np.array(found)[:, axis, None, None] * BASE ** (-2 * i / DIMS)
        left, right = x[..., i], x[..., i + half]
        expected[..., i] = left * np.cos(angle) - right * np.sin(angle)
        expected[..., i + half] = right * np.cos(angle) + left * np.sin(angle)
    # float32 holds an angle of 500 no more exactly
    assert np.allclose(np.array(turned), expected, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_equal_positions_turn_as_one_does(positions: list[int]) -> None:
    rope = turning(Sections((3, 3, 2), True))
    x = mx.random.normal((len(positions), 2, 1, WIDTH), key=mx.random.key(1))
    single = mx.array(positions, mx.int32)
    plain = nn.RoPE(DIMS, base=BASE)(x, offset=single)
    assert mx.array_equal(rope(x, offset=single), plain)
    assert mx.allclose(rope(x, offset=mx.stack([single] * 3)), plain, atol=2e-4)


def test_other_kinds_of_rotary_positions_are_left_alone() -> None:
    model = Attention()
    model.rope = nn.RoPE(DIMS, traditional=True)
    assert not turn_by_grids(model, Sections((3, 3, 2), True), "config.json")
    assert type(model.rope) is nn.RoPE
