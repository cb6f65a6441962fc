"""Cut-overs follow what was measured; what is kept is used only where it was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx.metal_kernels import machine
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tune import EXTENDS, PREFIXES, ROWS, Attend, Sweep, Tuning

CASE = Case("extend", 4, 2, 64, mx.float16)
FOUND = CutOvers(((0, 64), (4096, 16)), decode_from_rows=4)


class Clock:
    """Times of pairs, ours first, in which the kernel wins those marked with a w."""

    def __init__(self, pairs: str) -> None:
        self.times = [time for pair in pairs.split() for time in ((0.5 if pair == "w" else 2), 1)]

    def __call__(self, attend: Attend) -> float:
        return self.times.pop(0)


def test_a_kernel_is_taken_up_to_where_it_first_loses() -> None:
    found = Sweep(CASE, Kernels(), Clock("w w w w w   w w w l   w l   l   w w l")).run()
    longest = [found.longest_extend(prefix) for prefix in PREFIXES]
    assert longest == [EXTENDS[4], EXTENDS[2], EXTENDS[0], 0]
    assert found.longest_extend(0) == EXTENDS[4], "nothing shorter than the first was measured"
    assert found.decode_from_rows == ROWS[-2]


def test_both_ways_of_a_pair_compute_the_same(kernels: Kernels) -> None:
    seen: list[mx.array] = []

    def look(attend: Attend) -> float:
        seen.append(attend())
        return float(len(seen) % 2)  # the kernel loses: one pair of each kind

    Sweep(CASE, kernels, look).run()
    for ours, theirs in zip(seen[::2], seen[1::2], strict=True):
        same = theirs.swapaxes(1, 2).reshape(ours.shape)
        assert mx.allclose(ours, same, atol=2e-3)


def test_kept_cut_overs_come_back(tmp_path: Path) -> None:
    Tuning(tmp_path).save(CASE, FOUND)
    assert Tuning(tmp_path).load(CASE) == FOUND
    assert Tuning(tmp_path).load(Case("decode", 4, 2, 64, mx.float16, window=9)) == FOUND


@pytest.mark.parametrize("other", [replace(CASE, heads=8), replace(CASE, dtype=mx.float32)])
def test_other_heads_have_their_own(tmp_path: Path, other: Case) -> None:
    Tuning(tmp_path).save(CASE, FOUND)
    assert Tuning(tmp_path).load(other) is None


@pytest.mark.parametrize("changed", ["chip", "system", "mlx", "kernels"])
def test_another_machine_or_text_measures_anew(
    tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tuning(tmp_path).save(CASE, FOUND)
    other = {**machine.machine(), changed: "another"}
    monkeypatch.setattr(machine, "machine", lambda: other)
    assert Tuning(tmp_path).load(CASE) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"extend_up_to": 3}', '{"extend_up_to": []}'])
def test_a_broken_file_counts_as_none(tmp_path: Path, text: str) -> None:
    file = Tuning(tmp_path).save(CASE, FOUND)
    file.write_text(text)
    assert Tuning(tmp_path).load(CASE) is None
