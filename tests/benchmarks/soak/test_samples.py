"""The summary of a server's memory over time."""

from __future__ import annotations

from sgl_mlx.benchmarks.soak.samples import Sample, memory


def samples(*sizes: int, interval: float = 10.0) -> list[Sample]:
    return [Sample(i * interval, size, 1, 1, 0, 0, 0) for i, size in enumerate(sizes)]


def test_growth_counts_from_ten_minutes_on() -> None:
    found = memory(samples(*range(1, 61), *[100] * 60, *[110] * 40))
    assert found["settled_seconds"] == 600
    assert (found["settled_rss"], found["end_rss"]) == (100, 110)
    assert found["growth"] == 0.1
    assert found["peak_rss"] == 110


def test_a_short_soak_is_settled_after_half_its_time() -> None:
    found = memory(samples(1, 2, 50, 50, 50, 50, 50))
    assert found["settled_seconds"] == 30
    assert found["growth"] == 0


def test_one_odd_sample_does_not_count() -> None:
    assert memory(samples(*[50] * 20, 900))["growth"] == 0


def test_no_samples_give_no_figures() -> None:
    assert memory([]) == {}
