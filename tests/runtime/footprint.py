"""Footprints: what an engine and its process hold, counted exactly where that is possible."""

from __future__ import annotations

import gc
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import Barrier

import mlx.core as mx
import psutil

from sgl_mlx.models.memory import return_freed_memory
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.runner import ModelRunner
from tests.patience import PATIENCE, eventually

GROWTH = 24 << 20
"""Bytes by which a process may grow while a fault of more bytes than this comes ten times."""
TIMES = 10


@dataclass(frozen=True)
class Footprint:
    """Holdings of a process that a fault must give back.

    Attributes:
        active: bytes of all live MLX arrays of this process.
        arrays: number of arrays of the engine's pools.
        pooled: bytes of these arrays.
        threads: the number of Python threads by their name.
        files: the number of open files, pipes and sockets.
    """

    active: int
    arrays: int
    pooled: int
    threads: Counter[str]
    files: int

    @classmethod
    def of(cls, engine: Engine) -> Footprint:
        """Measure an engine without requests, after emptying its caches."""
        start_workers(engine)
        _wait_for_writes(engine)
        arrays = engine.run_on_model(lambda _: _emptied(engine))
        gc.collect()
        mx.clear_cache()
        return cls(
            active=mx.get_active_memory(),
            arrays=len(arrays),
            pooled=sum(arrays),
            threads=Counter(re.sub(r"\d+", "", t.name) for t in threading.enumerate()),
            files=psutil.Process().num_fds(),
        )

    def changes(self, now: Footprint) -> str:
        """Say what is not as it was.

        Of the process, other engines may have a part, which they may give back at any time: what
        became less is no leak.
        """
        before, after = vars(self), vars(now)
        changed = [name for name in ("arrays", "pooled") if before[name] != after[name]]
        changed += [name for name in ("active", "files") if before[name] < after[name]]
        changed += ["threads"] if now.threads - self.threads else []
        return "; ".join(f"{name}: {before[name]} became {after[name]}" for name in changed)


def start_workers(engine: Engine) -> None:
    """Start all threads of the engine's executors, which otherwise start when first needed."""
    for workers in engine._flight._workers.values():
        together = Barrier(workers._max_workers)
        waiting = [workers.submit(together.wait, PATIENCE) for _ in range(together.parties)]
        for future in waiting:
            future.result()


def _wait_for_writes(engine: Engine) -> None:
    disk = engine._loop.model.disk
    if disk is not None:
        eventually(lambda: not disk.store._pending, "all blocks are written")


def _emptied(engine: Engine) -> list[int]:
    """Empty an engine's caches on its thread; return the sizes of the arrays of its pools."""
    model = engine._loop.model
    runner = model.runner
    assert isinstance(runner, ModelRunner)
    assert model.scheduler.flush_cache()
    runner.synchronise(model.scheduler.cache.take_transfers())
    runner.forget_epoch()  # a prediction head keeps the last step's hidden states
    if runner._features is not None:
        runner._features.clear()  # type: ignore[attr-defined]
    model.pictures._kept.clear()
    pool, states, snapshots = runner._pool, runner._states, model.scheduler.cache.snapshots
    if states is not None and snapshots is not None:
        states.grow(snapshots._most)  # as requests may make it grow at any time
    arrays = [array for x in (*pool.keys, *pool.values) for array in x.arrays()]
    return [array.nbytes for array in [*arrays, *(states.arrays if states is not None else [])]]


def resident() -> int:
    """Return the bytes of memory that the process holds, once it has given back what it freed."""
    gc.collect()
    return_freed_memory()
    return int(psutil.Process().memory_info().rss)


def assert_no_growth(fault: Callable[[], object], bound: int = GROWTH) -> None:
    """Repeat a fault that allocates more than `bound` bytes; the process must not grow by as much.

    The first time counts for nothing: caches fill, and allocators get their heaps. Other threads
    may take memory too, so only growth that comes again in each of three rounds is a leak.
    """
    fault()
    grown = []
    for _ in range(3):
        before = resident()
        for _ in range(TIMES):
            fault()
        grown.append(resident() - before)
        if grown[-1] <= bound:
            return
    shown = ", ".join(f"{size >> 20} MiB" for size in grown)
    raise AssertionError(f"{TIMES} times the same fault left {shown} behind")
