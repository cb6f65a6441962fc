"""One engine of rank 0 among several ranks: what it agrees on with its parts on the other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import mlx.core as mx

from sgl_mlx.errors import BackendError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.disk.store import DiskStore
from sgl_mlx.runtime.ranks.broadcast import BroadcastingRunner
from sgl_mlx.runtime.ranks.crew import Crew
from sgl_mlx.runtime.ranks.disk import SendingStore, folder_of, identity_of_all
from sgl_mlx.runtime.ranks.peer import Peer
from sgl_mlx.runtime.ranks.sharing import SendingFeatures, SendingSampler, sampler_of
from sgl_mlx.runtime.ranks.turns import Turns, settle
from sgl_mlx.runtime.sampler import Sampler
from sgl_mlx.runtime.scheduler.plan import Runner
from sgl_mlx.runtime.vision.features import PictureFeatures


class Ranks:
    """All ranks, as one engine on rank 0 uses them.

    Args:
        engine: number of the engine, which every message about it names.
        size: number of ranks.
        load: loads this rank's share of the model, as the engine wants it.

    Attributes:
        on_thread: calls a function on the engine's thread and waits for it; does nothing before
            `attach`.
        on_close: called with the engine's number after `close_engine`.
        closed: set by `close_engine`.
    """

    def __init__(
        self,
        engine: int,
        size: int,
        crew: Crew,
        group: mx.distributed.Group,
        turns: Turns,
        load: Callable[[], LoadedModel],
    ) -> None:
        self.size = size
        self.on_thread: Callable[[Callable[[], None]], object] = lambda function: None
        self.on_close: Callable[[int], None] = lambda engine: None
        self.closed = threading.Event()
        self._engine, self._crew, self._group = engine, crew, group
        self._turns, self.load = turns, load

    def open(self, config: EngineConfig) -> None:
        """Let the other ranks load the model; `agree` waits for them."""
        self._tell("open", config=asdict(config))

    def agree(self, fingerprint: str, limits: Mapping[str, int]) -> dict[str, int]:
        """Wait until all ranks have loaded the model; return the least of each rank's limits.

        Raises:
            BackendError: a rank was lost, could not load its share, or has other weights.
        """
        least = dict(limits)
        for peer, found in self._answers():
            if "fault" in found:
                raise BackendError(f"{peer}: {found['fault']}")
            if found["fingerprint"] != fingerprint:
                self._tell("refused")
                raise BackendError(
                    f"{peer} has other weights or another configuration of the model than rank 0 "
                    f"(digest {found['fingerprint']} there, {fingerprint} here); copy the folders "
                    "of the model and its adapter from one machine to the others"
                )
            least = {name: min(value, found["limits"][name]) for name, value in least.items()}
        self._tell("agreed", limits=least)
        return least

    def attach(
        self, fail: Callable[[str], None], on_thread: Callable[[Callable[[], None]], object]
    ) -> None:
        """Name the functions that reach the engine once it is open.

        Args:
            fail: ends all requests when a rank is lost.
            on_thread: calls a function on the engine's thread and waits for it.
        """
        self._crew.fail_engines[self._engine] = fail
        self.on_thread = on_thread

    def broadcast(self, runner: Runner) -> Runner:
        """Return a runner that runs plans on all ranks, by `runner` on this one."""
        return BroadcastingRunner(runner, self._crew, self._turns, self._engine)

    def sampler(self) -> type[Sampler]:
        """Return the class of samplers that hand their tokens to the other ranks."""
        return sampler_of(SendingSampler, self._group)

    def features(self, features: PictureFeatures | None) -> PictureFeatures | None:
        """Make picture features reach the other ranks."""
        return None if features is None else SendingFeatures(features, self._group)

    @property
    def folder(self) -> str:
        """Name of this rank's folder within that of the disk cache."""
        return folder_of(0, self.size)

    def store(self, own: DiskStore, on_read: Callable[[], None]) -> SendingStore:
        """Return a store of blocks that reads them on all ranks; see `SendingStore`."""
        return SendingStore(own, self._crew, self._engine, on_read)

    def identity(self, mine: str) -> str:
        """Wait until all ranks have opened their disk caches; return the identity of all parts.

        Raises:
            BackendError: a rank was lost, or cannot open its disk cache.
        """
        return identity_of_all([mine, *(found["identity"] for _, found in self._answers())])

    def close_engine(self) -> None:
        """Let the other ranks drop their part of the engine. Call it on the engine's thread."""
        settle()
        self._crew.fail_engines.pop(self._engine, None)
        for peer in self._crew.peers:
            peer.on_read.pop(self._engine, None)
        self._tell("close")
        self.on_close(self._engine)
        self.closed.set()

    def _answers(self) -> Iterator[tuple[Peer, dict[str, Any]]]:
        """Wait for the next answer about this engine from each other rank."""
        for peer in self._crew.peers:
            found = peer.next().note
            while found["engine"] != self._engine:  # of one that could not be opened here
                found = peer.next().note
            yield peer, found

    def _tell(self, what: str, **more: Any) -> None:
        self._crew.tell(what, engine=self._engine, **more)
