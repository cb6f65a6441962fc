"""Ratios pair by pair, and none where systems fail or did different work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.benchmarks.peers.system import Answer, PeerError, Usage
from sgl_mlx.benchmarks.suite.compare import Comparison, compare, geometric_means
from sgl_mlx.benchmarks.suite.run import Run
from sgl_mlx.benchmarks.suite.workloads.words import Words
from sgl_mlx.benchmarks.suite.workloads.workload import Client, Need, Row, Size, Workload


@sgl.function
def program(s: Any, number: int) -> None:
    s += f"{number}"


def http(client: Client, number: int) -> None:
    client.complete(str(number), max_tokens=1)


def workload(needs: frozenset[Need] = frozenset()) -> Workload:
    rows = lambda words, size: [{"number": n} for n in range(5)]  # noqa: E731
    return Workload("five", "five numbers", rows, program, http, concurrency=2, needs=needs)


@dataclass
class Fake:
    """A system whose calls take so many tokens, and that may fail at a row or to start."""

    name: str
    tokens: int = 10
    fails_at: int | None = None
    abilities: frozenset[Need] = frozenset()
    version: str = ""
    starts: bool = True
    log: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    @contextmanager
    def session(self, workload: Workload, size: Size, words: Words) -> Iterator[Fake]:
        if not self.starts:
            raise PeerError(f"{self.name} was not up after 120 s")
        self.usage = Usage()
        self.log.append(self.name)
        yield self

    def run(self, row: Row) -> None:
        if row["number"] == self.fails_at:
            raise PeerError(f"{self.name} broke off")
        self.usage.add(Answer(self.tokens, 1, 0))

    def details(self) -> Mapping[str, Any]:
        return {"own": 1}


def compared(*systems: Fake, repeats: int = 1, needs: frozenset[Need] = frozenset()) -> Comparison:
    seen: list[tuple[str, int, int]] = []
    watch = lambda name, done, total: seen.append((name, done, total))  # noqa: E731
    any_words: Any = None
    [found] = compare(systems, {}, [workload(needs)], Size(1), any_words, repeats, watch)
    assert seen[0] == (f"five on {systems[0].name}", 0, 5) or not seen
    return found


def test_systems_take_turns() -> None:
    log: list[str] = []
    found = compared(Fake("ours", log=log), Fake("peer", log=log), repeats=3)
    assert log == ["ours", "peer"] * 3
    assert found.ratio("peer") is not None
    assert len(found.to_dict()["runs"]) == 6


def test_the_ratio_is_the_median_of_pairs() -> None:
    def run(seconds: float) -> Run:
        return Run("x", seconds, 1, (), (), {"calls": 1}, 0, {})

    found = Comparison(workload(), "ours", {"ours": [], "peer": []})
    found.runs = {"ours": [run(1), run(2), run(10)], "peer": [run(3), run(4), run(10)]}
    assert found.ratio("peer") == 2.0


def test_different_work_is_not_compared() -> None:
    found = compared(Fake("ours"), Fake("peer", tokens=11))
    assert found.ratio("peer") is None
    assert found.not_compared("peer") == "different work: 50 prompt_tokens here, 55 there"
    document = found.to_dict()
    assert (document["ratio"], len(document["runs"])) == ({}, 2)
    assert document["tokens"]["peer"]["prompt_tokens"] == 55


@pytest.mark.parametrize(
    ("broken", "message"),
    [({"fails_at": 3}, "peer broke off"), ({"starts": False}, "peer was not up after 120 s")],
)
def test_a_peer_that_fails_is_reported_and_the_others_go_on(
    broken: dict[str, Any], message: str
) -> None:
    found = compared(Fake("ours"), Fake("peer", **broken), Fake("other"), repeats=2)
    assert found.not_compared("peer") == message
    assert found.ratio("other") is not None
    assert "peer" not in found.to_dict()["tokens"]


def test_a_system_without_an_ability_is_left_out() -> None:
    seeing: frozenset[Need] = frozenset({"images"})
    log: list[str] = []
    found = compared(Fake("ours", abilities=seeing), Fake("blind", log=log), needs=seeing)
    assert found.not_compared("blind") == "blind has no images"
    assert not log


def test_when_ours_fails_nothing_is_compared() -> None:
    found = compared(Fake("ours", fails_at=0), Fake("peer"))
    assert found.not_compared("peer") == "ours broke off"


def test_a_peer_that_is_missing_is_reported_for_every_workload() -> None:
    any_words: Any = None
    both = [workload(), workload()]
    found = list(
        compare([Fake("ours")], {"peer": "no peer"}, both, Size(1), any_words, 1, lambda *_: None)
    )
    assert [c.not_compared("peer") for c in found] == ["no peer", "no peer"]
    assert geometric_means(found) == {}


def test_the_mean_is_over_the_workloads_with_a_ratio() -> None:
    def comparison(ours: float, theirs: float) -> Comparison:
        def run(seconds: float) -> Run:
            return Run("x", seconds, 1, (), (), {"calls": 1}, 0, {})

        return Comparison(workload(), "ours", {"ours": [run(ours)], "peer": [run(theirs)]})

    failed = Comparison(workload(), "ours", {}, {"peer": "broke off", "ours": ""})
    means = geometric_means([comparison(1, 2), comparison(1, 8), failed])
    assert means == {"peer": 4.0}
