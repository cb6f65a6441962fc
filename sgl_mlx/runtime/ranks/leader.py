"""Rank 0 among several, which schedules for all: the engines that it runs on all ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sgl_mlx.errors import BackendError, EngineStoppedError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.ranks.connect import accept_all
from sgl_mlx.runtime.ranks.crew import Crew
from sgl_mlx.runtime.ranks.engine import Ranks
from sgl_mlx.runtime.ranks.group import join_group
from sgl_mlx.runtime.ranks.launch import Launch
from sgl_mlx.runtime.ranks.share import Share
from sgl_mlx.runtime.ranks.turns import Turns, settle

_PATIENCE = 10.0
"""Longest wait in seconds for an engine that is shutting down."""


class Leader:
    """Rank 0 of a launch. It runs engines of one model, each perhaps with an adapter.

    Args:
        launch: how the ranks were launched; this process is rank 0.

    Raises:
        BackendError: see `connect.accept_all` and `join_group`.
    """

    def __init__(self, launch: Launch) -> None:
        self._size = launch.size
        self._crew = Crew(accept_all(launch))
        self._group = join_group(launch)
        self._share = Share(self._group)
        self._turns = Turns()
        self._opening = threading.Lock()
        self._engines: dict[int, Ranks] = {}
        self._last = 0

    @contextmanager
    def opening(self, config: EngineConfig) -> Iterator[Ranks]:
        """Let the other ranks open an engine while the `with` block opens it here.

        Engines open one after the other. If the block raises, the other ranks drop the engine.

        Raises:
            BackendError: a rank was lost, or an engine with another model is open.
        """
        with self._opening:
            self._crew.check()
            number = self._last + 1
            self._share.take(number, config)
            load = partial(self._share.load, number)
            ranks = Ranks(number, self._size, self._crew, self._group, self._turns, load)
            ranks.on_close = self._closed
            self._engines[number], self._last = ranks, number
            try:
                self._take_turns()
                ranks.open(config)
                yield ranks
                settle()  # another engine may begin now
            except BaseException:
                ranks.close_engine()
                raise

    def leave(self) -> None:
        """End the other ranks, when this process ends."""
        self._crew.leave()

    def _take_turns(self) -> None:
        """Make engines wait for each other, if there are several now."""
        self._turns.shared = len(self._engines) > 1
        for other in list(self._engines.values()):
            try:
                other.on_thread(settle)
            except EngineStoppedError as error:
                if not other.closed.wait(_PATIENCE):
                    raise BackendError(f"another engine of the ranks hangs: {error}") from error

    def _closed(self, engine: int) -> None:
        self._share.drop(engine)
        self._engines.pop(engine, None)
        self._turns.shared = len(self._engines) > 1
