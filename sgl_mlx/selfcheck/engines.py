"""The engines of a check: one for each way to run programs, on one model."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_mlx.selfcheck.recording import Answer
from sgl_mlx.selfcheck.restart import run_elsewhere
from sgl_mlx.selfcheck.running import counted, run_on
from sgl_mlx.selfcheck.statements import Program
from sgl_mlx.selfcheck.ways import ALONE, Group, Way, functions_of

if TYPE_CHECKING:
    from sgl_mlx.runtime.engine import Engine

OpenEngine = Callable[..., "Engine"]
"""Opens an engine on the model that is checked; takes options of `EngineConfig` by name."""


class Engines:
    """The engines of a check, opened when they are first used.

    Args:
        open_engine: opens an engine on the model.
        path: path of the model, from which a second process opens its engines for the property
            "today's process = a restarted one".
        options: options of every engine, in this process and in the second one.
        folder: an empty folder for disk caches.
    """

    def __init__(
        self, open_engine: OpenEngine, path: str, options: Mapping[str, Any], folder: Path
    ) -> None:
        self._open = open_engine
        self.path = path
        self.options = dict(options)
        self._folder = folder
        self._engines: dict[str, Engine] = {}
        self._random = random.Random(0)
        self._counts: dict[str, dict[str, int]] = {}

    def alone(self) -> Engine:
        """Return the engine that computes every request alone."""
        return self._engine(ALONE)

    def run(self, way: Way, programs: Sequence[Program]) -> list[list[Answer]]:
        """Run programs in one way; return the answers of each program."""
        if way.elsewhere:
            return self.run_elsewhere(way, programs)
        return self.run_groups(way, [functions_of(way, program) for program in programs])

    def run_groups(self, way: Way, groups: Sequence[Group]) -> list[list[Answer]]:
        """Run groups of functions with their settings; return the answers of each group.

        For a way over the disk cache, an engine runs them first and writes what it cached.
        """
        if not way.disk:
            return run_on(self._engine(way), way, groups, self._random)
        self.fill_disk(way, groups)
        with self._open(**self._with_disk(way)) as engine:
            found = run_on(engine, way, groups, self._random)
            self._add(way.name, counted(engine))
        return found

    def run_elsewhere(self, way: Way, programs: Sequence[Program]) -> list[list[Answer]]:
        """Run programs to fill the disk cache, then again in a new process that reads the cache.

        Returns the answers of the new process, for each program.
        """
        self.fill_disk(way, [functions_of(way, program) for program in programs])
        found, counts = run_elsewhere(self.path, self._with_disk(way), way, programs)
        self._add(way.name, counts)
        return found

    def fill_disk(self, way: Way, groups: Sequence[Group]) -> None:
        """Run groups of functions on an engine that then writes its cache to disk."""
        with self._open(**self._with_disk(way)) as engine:
            run_on(engine, way, groups, self._random)

    def forget(self) -> None:
        """Empty all caches, in memory and on disk.

        An engine that cannot empty its cache is shut down, and opened again when it is needed.
        """
        for name, engine in list(self._engines.items()):
            try:
                engine.flush_cache()
            except Exception:  # the difference at hand may have left it in any state
                engine.shutdown()
                del self._engines[name]
        shutil.rmtree(self._folder / "disk", ignore_errors=True)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each way the counts `COUNTED` of its engines."""
        now = {name: counted(engine) for name, engine in self._engines.items()}
        return {**self._counts, **now}

    def close(self) -> None:
        """Shut down all engines; their counts are kept."""
        self._counts = self.counts()
        for engine in self._engines.values():
            engine.shutdown()
        self._engines.clear()

    def _add(self, name: str, counts: Mapping[str, int]) -> None:
        mine = self._counts.setdefault(name, {})
        for key, count in counts.items():
            mine[key] = mine.get(key, 0) + count

    def _engine(self, way: Way) -> Engine:
        if way.name not in self._engines:
            self._engines[way.name] = self._open(**{**self.options, **way.options})
        return self._engines[way.name]

    def _with_disk(self, way: Way) -> dict[str, Any]:
        return {**self.options, **way.options, "disk_cache_dir": str(self._folder / "disk")}
