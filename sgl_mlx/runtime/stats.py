"""Statistics of an engine, as a dataclass and as a flat dictionary."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sgl_mlx.runtime.cache.snapshots import SnapshotStats
from sgl_mlx.runtime.cache.windows import WindowStats
from sgl_mlx.runtime.disk.open import DiskStats
from sgl_mlx.runtime.scheduler.admission import Counters
from sgl_mlx.runtime.scheduler.plan import RunnerStats
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.vision.pictures import PictureStats


@dataclass(frozen=True)
class EngineStats:
    """Counts and seconds of an engine since its start.

    Attributes:
        counters: the scheduler's counts of tokens, steps and preemptions.
        runner: the runner's counts and seconds.
        tree_seconds: time spent in the prefix cache.
        schedule_seconds: time spent in the rest of the scheduler.
        model_seconds: time spent in all model steps.
        decode_seconds: time spent in steps that only decode.
        running: sequences running now.
        waiting: sequences waiting for admission now.
        free_slots: unused slots of the KV pool now.
        cached_slots: slots of cached prefixes that can be evicted now.
        restored_tokens: tokens whose KV was read from the disk cache into the pool.
        states: counts of recurrent states; None for a model of attention alone.
        windows: counts of slots of layers with a sliding window; None if all layers have the same
            slots.
        disk: counts of the disk cache; None without one.
        pictures: counts of processed pictures; None for a text-only model.
    """

    counters: Counters
    runner: RunnerStats
    tree_seconds: float
    schedule_seconds: float
    model_seconds: float
    decode_seconds: float
    running: int
    waiting: int
    free_slots: int
    cached_slots: int
    restored_tokens: int
    states: SnapshotStats | None = None
    windows: WindowStats | None = None
    disk: DiskStats | None = None
    pictures: PictureStats | None = None

    @classmethod
    def of(cls, scheduler: Scheduler, runner: RunnerStats, **others: Any) -> EngineStats:
        """Collect the statistics of an engine.

        Args:
            others: the attributes that neither the scheduler nor the runner knows.
        """
        cache = scheduler.cache
        return cls(
            counters=replace(scheduler.counters),
            runner=runner,
            tree_seconds=cache.seconds,
            schedule_seconds=scheduler.seconds - cache.seconds,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_slots=cache.slots.free_count,
            cached_slots=cache.tree.evictable,
            restored_tokens=scheduler.restored_tokens,
            states=cache.snapshots.stats() if cache.snapshots else None,
            windows=cache.windows.stats() if cache.windows else None,
            **others,
        )

    def to_dict(self) -> dict[str, float]:
        """Return all numbers in one flat dictionary; names of the disk cache begin with `disk_`."""
        parts = asdict(self)
        counters, runner = parts.pop("counters"), parts.pop("runner")
        disk, pictures = parts.pop("disk") or {}, parts.pop("pictures")
        encoder, states = runner.pop("encoder") or {}, parts.pop("states") or {}
        states |= parts.pop("windows") or {}
        named = {f"disk_{name}": number for name, number in disk.items()}
        return {**counters, **parts, **runner, **states, **named, **(pictures or {}), **encoder}
