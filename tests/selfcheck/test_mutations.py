"""The self-check is worth what it finds: every fault in `mutations`, shrunk to a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx.runtime import config
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.speculation import drafting
from sgl_mlx.selfcheck.check import Finding, SelfCheck
from tests.conftest import SHOWN
from tests.runtime.speculation.costs import FREE
from tests.selfcheck.models import engines_on
from tests.selfcheck.mutations import MUTATIONS, Mutation

LINES = 10
PROGRAMS = 640
SEEDS = 4
TRIES = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled, every draft pays, and sequences are preempted."""
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(config, "SchedulerLimits", partial(SchedulerLimits, decode_margin=0))
    mx.disable_compile()
    yield
    mx.enable_compile()


def found(mutation: Mutation, folder: Path) -> tuple[Finding | None, int]:
    """Check a toy with the fault; return the difference that was found, and how many programs ran.

    Which requests share a step depends on when they arrive. So a fault that takes two rows may not
    show, or not show again, on a busy machine; then other programs are tried.
    """
    finding, programs = None, 0
    for seed in range(mutation.seed, mutation.seed + SEEDS):
        finding, ran = checked(mutation, folder, seed)
        programs += ran
        if finding is not None and finding.reproduced:
            break
    return finding, programs


def checked(mutation: Mutation, folder: Path, seed: int) -> tuple[Finding | None, int]:
    options = {"max_total_tokens": mutation.slots, "max_total_states": mutation.states}
    elsewhere = mutation.ways[0].elsewhere  # each try is a new process
    with engines_on(mutation.kind, folder, **options) as engines:
        check = SelfCheck(
            engines,
            mutation.ways,
            seed,
            answers=2,
            new=mutation.new,
            shrink_seconds=400,
            shrink_tries=2 if elsewhere else TRIES,
        )
        report = check.run(16 if elsewhere else PROGRAMS)
    return report.finding, report.programs


def test_the_faults_are_of_every_kind() -> None:
    assert len(MUTATIONS) >= 15


# a fault may break an engine's thread, whose requests then fail: a difference like others
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("what", MUTATIONS)
def test_a_fault_is_found_and_shrunk(
    what: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    mutation = MUTATIONS[what]
    mutation.plant(monkeypatch)
    finding, programs = found(mutation, folder)
    assert finding is not None, f"not found in {programs} programs"
    lines = len(finding.source.splitlines())
    record_property(SHOWN, f"{what:<64} {finding.way.name:<34} {programs:>4} {lines:>3}")
    assert finding.reproduced
    assert lines <= LINES, finding.source
