"""Thousands of random programs on toys of each kind of cache, and some on SmolLM2.

`SELFCHECK_PROGRAMS` is a factor of their number, `SELFCHECK_SEED` draws others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.runtime import config
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.speculation import drafting
from sgl_mlx.selfcheck.check import Report, SelfCheck
from sgl_mlx.selfcheck.engines import Engines
from sgl_mlx.selfcheck.open import open_engines
from sgl_mlx.selfcheck.ways import BATCHED, CACHED, DRAFTED, FORKED, RESTARTED, RESTORED, STREAMED
from tests.conftest import SHOWN
from tests.runtime.speculation.costs import FREE
from tests.selfcheck.models import engines_on

FACTOR = float(os.environ.get("SELFCHECK_PROGRAMS", "1"))
SEED = int(os.environ.get("SELFCHECK_SEED", "0"))
BATCHES = {"plain": 128}
WAYS = (BATCHED, CACHED, FORKED, STREAMED, DRAFTED, RESTORED)
SIZES = {"plain": 3584, "window": 384, "recurrent": 384, "latent": 384, "pictures": 384}
"""Programs by the kind of the toy: together more than 5,000."""

Show = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled, every draft pays, and sequences are preempted."""
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(config, "SchedulerLimits", partial(SchedulerLimits, decode_margin=0))
    mx.disable_compile()
    yield
    mx.enable_compile()


def check(engines: Engines, programs: int, show: Show, ways: Any = WAYS, batch: int = 64) -> Report:
    """Check programs, each round in one of the ways, and show the table."""
    made = SelfCheck(engines, ways, SEED, batch, answers=1, new=2)
    rounds = -(-round(programs * FACTOR) // batch)
    for number, way in zip(range(rounds), cycle(ways), strict=False):
        made.round(number, [way])
        assert made.report.finding is None, show_finding(made.report)
    made.finish()
    report = made.report
    assert report.finding is None, show_finding(report)
    for name, row in report.rows.items():
        counts = (row.programs, row.answers, row.ties, row.differences)
        show(
            SHOWN, f"{Path(engines.path).name:<10} {name:<34}" + "".join(f"{n:>7}" for n in counts)
        )
    return report


def show_finding(report: Report) -> str:
    assert report.finding is not None
    return f"{report.finding.way.name}: {report.finding.difference}\n{report.finding.source}"


def test_the_sizes_are_those_promised() -> None:
    assert sum(SIZES.values()) >= 5000


@pytest.mark.parametrize("kind", SIZES)
def test_random_programs_are_answered_alike(
    kind: str, tmp_path: Path, record_property: Show
) -> None:
    options = {"max_total_tokens": 1024, "chunked_prefill_size": 48}
    with engines_on(kind, tmp_path, **options) as engines:
        report = check(engines, SIZES[kind], record_property, batch=BATCHES.get(kind, 64))
    assert report.programs >= SIZES[kind] * FACTOR
    ties = sum(row.ties for row in report.rows.values())
    assert ties <= report.programs // 100, "near-ties must be rare"


def test_a_small_pool_preempts_and_the_answers_are_the_same(
    tmp_path: Path, record_property: Show
) -> None:
    with engines_on("plain", tmp_path, max_total_tokens=400) as engines:
        made = SelfCheck(engines, (BATCHED, DRAFTED), SEED, batch=32, answers=1, new=12)
        for number in range(4):
            made.round(number)
        made.finish()
    assert made.report.finding is None, show_finding(made.report)
    counts = made.report.counts
    assert counts[BATCHED.name]["preemptions"] > 0
    assert counts[DRAFTED.name]["accepted_tokens"] > 0


def test_a_new_process_answers_as_this_one(tmp_path: Path, record_property: Show) -> None:
    with engines_on("plain", tmp_path) as engines:
        report = check(engines, 48, record_property, (RESTORED, RESTARTED), batch=48)
    assert report.rows[RESTARTED.name].programs == 48
    assert report.counts[RESTARTED.name]["restored_tokens"] > 0
    assert report.counts[RESTORED.name]["restored_tokens"] > 0


def test_windows_are_restored_from_disk(tmp_path: Path, record_property: Show) -> None:
    with engines_on("window", tmp_path) as engines:
        report = check(engines, 32, record_property, (RESTORED,), batch=32)
    assert report.counts[RESTORED.name]["restored_tokens"] > 0


def test_programs_on_smollm2_are_answered_alike(record_property: Show) -> None:
    with open_engines("smollm2", {"max_total_tokens": 2048}) as engines:
        ways = (CACHED, DRAFTED)
        check(engines, 16, record_property, ways, batch=8)
