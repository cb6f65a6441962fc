"""Which path is taken for which work."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels.dispatch import EVERY_PATH, AttentionPath, CutOvers, Work, choose_path

ONE = Work(rows=1, tokens=40, dim=128, dtype=mx.float16)
MANY = replace(ONE, rows=3)


@pytest.mark.parametrize(
    ("work", "path"),
    [
        (replace(ONE, contiguous=True), AttentionPath.SLICE),
        (replace(ONE, contiguous=True, tokens=1), AttentionPath.SLICE),
        (replace(ONE, contiguous=True, quantized=True), AttentionPath.EXTEND),
        (replace(ONE, contiguous=True, window=9), AttentionPath.EXTEND),
        (replace(ONE, contiguous=True, dim=256), AttentionPath.EXTEND),
        (replace(MANY, contiguous=True), AttentionPath.EXTEND),
        (replace(ONE, tokens=255), AttentionPath.EXTEND),
        (replace(ONE, tokens=256), AttentionPath.GATHER),
        (replace(ONE, tokens=256, softcap=30.0), AttentionPath.EXTEND),
        (replace(ONE, tokens=256, dim=80), AttentionPath.EXTEND),
        (replace(ONE, tokens=9), AttentionPath.EXTEND),
        (replace(ONE, tokens=8), AttentionPath.DECODE),
        (replace(MANY, tokens=1), AttentionPath.DECODE),
        (replace(MANY, tokens=1, shared=True), AttentionPath.SHARED),
        (replace(MANY, dim=72), AttentionPath.REFERENCE),
        (replace(MANY, value_dim=64), AttentionPath.REFERENCE),
        (replace(ONE, dim=512), AttentionPath.EXTEND),
        (replace(MANY, tokens=1, dim=192, value_dim=128), AttentionPath.DECODE),
        (replace(ONE, tokens=500, dim=576, value_dim=512, contiguous=True), AttentionPath.EXTEND),
        (replace(MANY, dim=512, value_dim=576), AttentionPath.REFERENCE),
        (replace(MANY, dtype=mx.float64), AttentionPath.REFERENCE),
    ],
)
def test_the_design_names_the_path(work: Work, path: AttentionPath) -> None:
    assert choose_path(work) is path


def test_tuned_cut_overs_move_the_borders() -> None:
    cut = CutOvers(extend_up_to=((0, 31),), decode_until=2)
    assert choose_path(replace(ONE, tokens=3), cut) is AttentionPath.EXTEND
    assert choose_path(replace(ONE, tokens=32), cut) is AttentionPath.GATHER


def test_a_path_that_is_withheld_gives_way_to_the_next() -> None:
    shared = replace(MANY, tokens=1, shared=True)
    assert choose_path(shared, allowed=EVERY_PATH - {AttentionPath.SHARED}) is AttentionPath.DECODE
    assert choose_path(shared, allowed=()) is AttentionPath.REFERENCE
    long = replace(ONE, tokens=500)
    assert choose_path(long, allowed=EVERY_PATH - {AttentionPath.EXTEND}) is AttentionPath.GATHER
