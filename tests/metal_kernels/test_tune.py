"""Cut-overs follow what was measured; what is kept is used only where it was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.metal_kernels import records
from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.plan import CHUNKS
from sgl_mlx.metal_kernels.selftest import Case
from sgl_mlx.metal_kernels.tune import EXTENDS, PREFIXES, ROWS, Attend, Sweep, Tuning

CASE = Case("extend", 4, 2, 64, mx.float16)
FOUND = CutOvers(((0, 64), (4096, 16)), decode_from_rows=4, decode_items=32)


class Clock:
    """Times in order: one each of `chunks`, and of pairs, of which the kernel, first, wins a w."""

    def __init__(self, extends: str, chunks: list[float], decodes: str) -> None:
        def times(pairs: str) -> list[float]:
            return [time for pair in pairs.split() for time in ((0.5 if pair == "w" else 2), 1)]

        self.times = [*times(extends), *chunks, *times(decodes)]

    def __call__(self, attend: Attend) -> float:
        return self.times.pop(0)


def test_a_kernel_is_taken_up_to_where_it_first_loses() -> None:
    clock = Clock("w w w w w   w w w l   w l   l", [4, 2, 3, 9], "w w l")
    found = Sweep(CASE, Kernels(), clock).run()
    assert clock.times == []
    longest = [found.longest_extend(prefix) for prefix in PREFIXES]
    assert longest == [EXTENDS[4], EXTENDS[2], EXTENDS[0], 0]
    assert found.longest_extend(0) == EXTENDS[4], "nothing shorter than the first was measured"
    assert found.decode_from_rows == ROWS[-2]
    assert found.decode_items == 2 * 2048 // CHUNKS[1]
    assert found.chunk(2048, kv_heads=2) == CHUNKS[1], "what was measured"


@given(st.integers(0, 1 << 20), st.integers(1, 64), st.integers(1, 4096))
def test_a_chunk_is_the_longest_that_keeps_the_gpu_busy(
    keys: int, kv_heads: int, items: int
) -> None:
    chunk = CutOvers(decode_items=items).chunk(keys, kv_heads)
    assert chunk in CHUNKS
    busy = [c for c in CHUNKS if keys * kv_heads / c >= items]
    assert chunk == (busy[-1] if busy else CHUNKS[0])


def test_both_ways_of_a_pair_compute_the_same(kernels: Kernels) -> None:
    seen: list[mx.array] = []

    def look(attend: Attend) -> float:
        seen.append(attend())
        return float(len(seen) % 2)  # the kernel loses: one pair of each kind

    Sweep(CASE, kernels, look).run()
    chunks, pairs = seen[8:12], seen[:8] + seen[12:]  # after one extend of each prefix
    assert [(chunk.shape, mx.isfinite(chunk).all().item()) for chunk in chunks] == [
        ((1, 4, 64), True)
    ] * len(CHUNKS)
    for ours, theirs in zip(pairs[::2], pairs[1::2], strict=True):
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
    other = {**records.machine(), changed: "another"}
    monkeypatch.setattr(records, "machine", lambda: other)
    assert Tuning(tmp_path).load(CASE) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"extend_up_to": 3}', '{"extend_up_to": []}'])
def test_a_broken_file_counts_as_none(tmp_path: Path, text: str) -> None:
    file = Tuning(tmp_path).save(CASE, FOUND)
    file.write_text(text)
    assert Tuning(tmp_path).load(CASE) is None
