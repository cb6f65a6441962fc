"""An engine whose plans are recorded as JSON, and their replay on another runner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import RunnableModel, open_model
from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import (
    Decode,
    Extend,
    Lookup,
    Place,
    Plan,
    RunnerStats,
    Shown,
    StepResult,
)
from sgl_mlx.runtime.scheduler.wire import from_json, to_json


@dataclass
class Recording:
    """The plans and results of a runner, as text, and all it looked up meanwhile."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    masks: list[Mapping[Place, bytes]] = field(default_factory=list)
    images: dict[str, Shown] = field(default_factory=dict)

    def open(
        self, config: EngineConfig, on_read: Callable[[], None], loaded: LoadedModel | None = None
    ) -> RunnableModel:
        """`open_model` with a recording runner."""
        model = open_model(config, on_read, loaded)
        assert isinstance(model.runner, ModelRunner)
        model.runner.lookup = RecordingLookup(model.scheduler.lookup, self)
        return replace(model, runner=RecordingRunner(model.runner, self))

    def replay(self, runner: ModelRunner) -> int:
        """Run all plans again, asserting that the results are the same; how many there were."""
        runner.lookup = Replies(self)
        for plan_text, expected in self.steps:
            plan, result = from_json(plan_text), from_json(expected)
            assert isinstance(plan, (Extend, Decode))
            assert runner.run(plan) == result
        return len(self.steps)


class RecordingRunner:
    """A `plan.Runner` in front of another."""

    def __init__(self, runner: ModelRunner, recording: Recording) -> None:
        self._runner, self._recording = runner, recording
        self._moved: tuple[Transfer, ...] = ()

    def run(self, plan: Plan) -> StepResult:
        text = to_json(replace(plan, transfers=(*self._moved, *plan.transfers)))
        self._moved = ()
        result = self._runner.run(plan)
        self._recording.steps.append((text, to_json(result)))
        return result

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        self._moved += transfers
        self._runner.synchronise(transfers)

    def forget_epoch(self) -> None:
        self._runner.forget_epoch()

    def stats(self) -> RunnerStats:
        return self._runner.stats()


class RecordingLookup:
    """A `plan.Lookup` in front of another."""

    def __init__(self, lookup: Lookup, recording: Recording) -> None:
        self._lookup, self._recording = lookup, recording

    def masks(self, places: Collection[Place]) -> Mapping[Place, bytes]:
        self._recording.masks.append(self._lookup.masks(places))
        return self._recording.masks[-1]

    def image(self, picture: str) -> Shown:
        return self._recording.images.setdefault(picture, self._lookup.image(picture))


class Replies:
    """A `plan.Lookup` that answers as was recorded."""

    def __init__(self, recording: Recording) -> None:
        self._masks, self._images = iter(recording.masks), recording.images

    def masks(self, places: Collection[Place]) -> Mapping[Place, bytes]:
        masks = next(self._masks)
        assert set(masks) <= set(places)
        return masks

    def image(self, picture: str) -> Shown:
        return self._images[picture]
