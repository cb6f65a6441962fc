"""A kernel epoch prepares a layer's calls in its first step; later steps only launch them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx import metal_kernels
from sgl_mlx.metal_kernels import tested
from sgl_mlx.metal_kernels.build import Kernels as Compiled
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime import attention
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.kernels import KernelEpoch
from sgl_mlx.runtime.pool.kv import KVPool
from tests.runtime import steps

LAYERS, STEPS = 6, 4
FOLDERS = [Path(x.__file__).resolve().parent for x in (metal_kernels, attention)]
ONCE = {
    *("takes", "verdict", "decoder", "check_decode", "check", "of", "of_pool", "with_options"),
    *("prepare", "reals", "shared_tiles", "_template", "_kernel"),
}
"""Functions that a layer needs once in an epoch."""


class Launches:
    """Factory of kernels that compute nothing and keep their inputs by name."""

    def __init__(self) -> None:
        self.seen: dict[str, list[mx.array]] = {}

    def __call__(self, name: str, input_names: list[str], **_: Any) -> Any:
        def launch(inputs: list[mx.array], output_shapes: Any, output_dtypes: Any, **_: Any) -> Any:
            for key, array in zip(input_names, inputs, strict=True):
                self.seen.setdefault(key, []).append(array)
            return [mx.zeros(s, t) for s, t in zip(output_shapes, output_dtypes, strict=True)]

        return launch


def no_plain_epoch() -> Epoch:
    raise AssertionError("every layer is for the kernels")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    monkeypatch.setattr(tested, "compare", lambda *_: (True, "taken as right"))
    return Launches()


def open_epoch(launches: Launches, rows: int) -> KernelEpoch:
    """Open an epoch of `rows` sequences, which share the first 40 of their 59 prefix tokens."""
    pool = KVPool([LayerShape(2, 64, 64)] * LAYERS, 90 + 30 * rows, mx.float32)
    own = [range(90 + 30 * i, 90 + 30 * i + 19) for i in range(rows)]
    found = [
        steps.row(str(i), (*range(1, 41), *slots), 1, tuple(range(slots[-1] + 1, slots[-1] + 5)))
        for i, slots in enumerate(own)
    ]
    kernels = TestedKernels(Compiled(launches))
    return KernelEpoch(pool, found, STEPS, kernels, range(LAYERS), CutOvers(), no_plain_epoch)


def run_step(epoch: KernelEpoch, options: AttentionOptions) -> None:
    rows = len(epoch.rows)
    epoch.begin_step()
    for layer in range(LAYERS):
        new = mx.zeros((rows, 2, 64))
        epoch.store(layer, new, new)
        epoch.attend(layer, mx.zeros((rows, 4, 64)), options)


@contextmanager
def calls() -> Iterator[Counter[str]]:
    """Count the calls of Python functions in the folders of kernels and attention, by name."""
    counts: Counter[str] = Counter()
    inside: dict[str, bool] = {}

    def count(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if file not in inside:
            inside[file] = any(x in FOLDERS for x in Path(file).resolve().parents)
        name = frame.f_code.co_name
        if event == "call" and inside[file] and not name.startswith("<"):  # a comprehension's
            counts[name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_tables_are_made_once(launches: Launches, softcap: float | None, rows: int) -> None:
    epoch = open_epoch(launches, rows)
    for _ in range(STEPS):
        run_step(epoch, AttentionOptions(0.5, softcap=softcap))
    assert len({id(x) for x in launches.seen["ints"]}) == STEPS
    assert len({id(x) for x in launches.seen["reals"]}) == 1
    columns = [x.tolist()[0] for x in launches.seen["ints"]]
    assert sorted(set(columns)) == [1, 2, 3, 4]
    assert launches.seen["reals"][0].tolist()[:2] == pytest.approx([0.5, softcap or 0.0])


@pytest.mark.parametrize("rows", [1, 3])
def test_after_the_first_step_a_layer_is_launched_and_nothing_else(
    launches: Launches, rows: int
) -> None:
    epoch = open_epoch(launches, rows)
    with calls() as first:
        run_step(epoch, AttentionOptions(0.5))
    assert first["takes"] == first["check_decode"] == first["decoder"] == LAYERS
    for _ in range(STEPS - 1):
        with calls() as later:
            run_step(epoch, AttentionOptions(0.5))
        assert ONCE.isdisjoint(later), ONCE & later.keys()
        assert later["int_table"] == 1
        assert later.total() <= 12 * LAYERS, later
    assert ONCE - first.keys() == ({"shared_tiles"} if rows == 1 else set())


def test_a_step_beyond_the_epochs_width_is_refused(launches: Launches) -> None:
    epoch = open_epoch(launches, 1)
    for _ in range(STEPS):
        run_step(epoch, AttentionOptions(0.5))
    with pytest.raises((ValueError, IndexError)):
        run_step(epoch, AttentionOptions(0.5))
