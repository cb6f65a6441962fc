"""Statistics of an engine, typed, and as the flat dictionary of `Engine.get_server_info`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sgl_mlx.runtime.disk.open import DiskStats
from sgl_mlx.runtime.scheduler.admission import Counters
from sgl_mlx.runtime.scheduler.plan import RunnerStats
from sgl_mlx.runtime.vision.pictures import PictureStats


@dataclass(frozen=True)
class EngineStats:
    """Exact counts, and seconds by part, since the start.

    Attributes:
        counters: tokens, passes and preemptions.
        runner: counts and seconds of the runner.
        tree_seconds: time spent in the prefix cache.
        schedule_seconds: time spent in the rest of the scheduler.
        model_seconds: time spent in steps of the model, of all kinds.
        decode_seconds: time spent in steps that only decode.
        running: sequences that run now.
        waiting: sequences that wait now to be admitted.
        free_slots: slots of the KV pool that nothing uses now.
        cached_slots: slots that hold cached prefixes now; they can be evicted.
        restored_tokens: read from the second tier into the pool.
        disk: None without a second tier.
        pictures: None for a model of text alone.
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
    disk: DiskStats | None = None
    pictures: PictureStats | None = None

    def to_dict(self) -> dict[str, float]:
        """List all numbers by name; names of the disk tier begin with `disk_`."""
        parts = asdict(self)
        counters, runner = parts.pop("counters"), parts.pop("runner")
        disk, pictures = parts.pop("disk") or {}, parts.pop("pictures")
        encoder = runner.pop("encoder") or {}
        named = {f"disk_{name}": number for name, number in disk.items()}
        return {**counters, **parts, **runner, **named, **(pictures or {}), **encoder}
