"""An engine loop takes another runner, a loaded model, and sequences with deadlines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from sgl_mlx.core import FinishReason, SamplingParams
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.runtime.assembly import OpenModel, RunnableModel, open_model
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.cache.tier import Tier
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.scheduler.plan import Extend, Plan, RunnerStats, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.scheduler.sequence import Sequence
from tests.patience import PATIENCE
from tests.runtime.fakes import FakeStore
from tests.runtime.truth import Recorder

PROMPT = list(range(20, 40))


class Awaited(Recorder):
    """A recorder that can be waited for from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def finish(self, reason: FinishReason) -> None:
        super().finish(reason)
        self.ended.set()


class Scripted:
    """A `plan.Runner` without a model: every row's next token is the one after its last."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self._last: dict[str, int] = {}

    def run(self, plan: Plan) -> StepResult:
        self.plans.append(plan)
        rows = plan.rows if isinstance(plan, Extend) else plan.opening
        self._last |= {row.id: row.tokens[-1] for row in rows}
        ids = [row.id for row in rows if row.sample] if isinstance(plan, Extend) else plan.ids
        self._last |= {name: self._last[name] + 1 for name in ids}
        return StepResult({name: (self._last[name],) for name in ids})

    def synchronise(self, transfers: object = ()) -> None:
        """Nothing is computed."""

    def forget_epoch(self) -> None:
        """There is none."""

    def stats(self) -> RunnerStats:
        return RunnerStats()


class EndlessStore(FakeStore):
    """A second tier that seems to have everything."""

    def has(self, key: str) -> bool:
        return True


@contextmanager
def running(
    folder: Path, loaded: LoadedModel | None = None, opens: OpenModel = open_model
) -> Iterator[EngineLoop]:
    options = {"model_path": str(folder), "max_total_tokens": 500}
    loop = EngineLoop(EngineConfig.of(options), loaded, opens)
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()


def run(loop: EngineLoop, patience: float | None = None) -> Awaited:
    """The outcome of one greedy request."""
    params = SamplingParams(max_new_tokens=7, temperature=0)
    deadline = None if patience is None else time.monotonic() + patience
    told = Awaited()
    s = Sequence(f"s{id(told)}", list(PROMPT), told, params, deadline=deadline)
    loop.post(partial(loop.add, [s]))
    assert told.ended.wait(PATIENCE)
    return told


def test_a_scripted_runner_takes_the_place_of_the_model(toy_folder: Path) -> None:
    scripted = Scripted()

    def opens(
        config: EngineConfig, on_read: Callable[[], None], loaded: LoadedModel | None
    ) -> RunnableModel:
        return replace(open_model(config, on_read, loaded), runner=scripted)

    with running(toy_folder, opens=opens) as loop:
        assert run(loop).tokens == [40, 41, 42, 43, 44, 45, 46]
    assert scripted.plans


def test_a_loaded_model_answers_in_one_engine_after_the_other_and_side_by_side(
    toy_folder: Path,
) -> None:
    with running(toy_folder) as loop:
        right = run(loop).tokens
    loaded = load(str(toy_folder))
    for _ in range(2):
        with running(toy_folder / "nowhere", loaded) as loop:
            assert run(loop).tokens == right
    with (
        running(toy_folder / "nowhere", loaded) as first,
        running(toy_folder / "nowhere", loaded) as second,
    ):
        assert run(first).tokens == run(second).tokens == run(first).tokens == right


def test_a_deadline_wakes_an_engine_that_only_waits_for_the_disk(toy_folder: Path) -> None:
    store = EndlessStore()

    def opens(
        config: EngineConfig, on_read: Callable[[], None], loaded: LoadedModel | None
    ) -> RunnableModel:
        model = open_model(config, on_read, loaded)
        tier = Tier(store, "a disk that never answers", 4, worthwhile=4)
        return replace(model, scheduler=Scheduler(PrefixCache(500, tier=tier)))

    with running(toy_folder, opens=opens) as loop:
        for patience in (0.05, 1, 20):  # until the reading begins before the deadline passes
            told = run(loop, patience)
            if store.readings:
                break
        assert store.readings
        assert told.reason is not None
        assert "deadline passed while the request was waiting" in (told.reason.message or "")


def test_statistics_are_typed_and_flat_for_sglang(toy_folder: Path) -> None:
    with running(toy_folder) as loop:
        run(loop)
        stats = loop.call(loop.stats).result(PATIENCE)
    assert stats.counters.prompt_tokens == stats.counters.computed_tokens == len(PROMPT)
    assert stats.disk is stats.pictures is stats.runner.encoder is None
    flat = stats.to_dict()
    assert flat["prompt_tokens"] == len(PROMPT)
    assert flat["running"] == flat["waiting"] == 0
    assert flat["free_slots"] + flat["cached_slots"] == 500
    assert flat["mask_seconds"] == flat["restored_tokens"] == 0
    assert all(isinstance(number, (int, float)) for number in flat.values())
