"""An engine leaves a Mac enough memory, whatever its size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.benchmarks.modelled.mac_memory import GIB, LLAMA_8B, SIZES, row, table


def test_an_8b_model_runs_on_every_mac_or_says_why_not() -> None:
    rows = list(table())
    assert [r.memory // GIB for r in rows] == list(SIZES)
    for r in rows:
        assert r.refusal is not None or (r.slots >= 1000 and r.left >= 2 * GIB)


@given(memory=st.integers(4 * GIB, 512 * GIB), weights=st.integers(GIB // 10, 400 * GIB))
def test_two_gib_are_left_or_the_model_is_refused(memory: int, weights: int) -> None:
    found = row(memory, replace(LLAMA_8B, weights=weights))
    assert found.refusal is not None or found.left >= 2 * GIB


def test_more_memory_never_means_fewer_tokens() -> None:
    slots = [r.slots for r in table()]
    assert slots == sorted(slots)


@pytest.mark.parametrize("memory", [8, 16])
def test_eight_bits_hold_more_tokens(memory: int) -> None:
    assert row(memory * GIB, LLAMA_8B, 8).slots >= row(memory * GIB, LLAMA_8B).slots
