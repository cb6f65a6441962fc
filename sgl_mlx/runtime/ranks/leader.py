"""Rank 0 among several, which schedules for all: what it agrees on with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.disk.store import DiskStore
from sgl_mlx.runtime.ranks.broadcast import BroadcastingRunner
from sgl_mlx.runtime.ranks.connect import accept_all
from sgl_mlx.runtime.ranks.crew import Crew
from sgl_mlx.runtime.ranks.disk import SendingStore, folder_of, identity_of_all
from sgl_mlx.runtime.ranks.group import join_group
from sgl_mlx.runtime.ranks.launch import Launch
from sgl_mlx.runtime.ranks.sharing import SendingFeatures, SendingSampler, sampler_of
from sgl_mlx.runtime.sampler import Sampler
from sgl_mlx.runtime.scheduler.plan import Runner
from sgl_mlx.runtime.vision.features import PictureFeatures


class Ranks:
    """The ranks of a launch, as rank 0 has them; they serve one engine after the other.

    Args:
        launch: how the ranks were launched; this process is rank 0.

    Attributes:
        size: number of ranks.
        group: MLX's group of all ranks.

    Raises:
        BackendError: see `connect.accept_all` and `join_group`.
    """

    def __init__(self, launch: Launch) -> None:
        self.size = launch.size
        self._opened = False
        self._crew = Crew(accept_all(launch))
        self.group = join_group(launch)

    def open(self, config: EngineConfig) -> None:
        """Let the other ranks load a model; `agree` waits for them.

        Raises:
            BackendError: a rank was lost, or another engine is open.
        """
        self._crew.check()
        if self._opened:
            raise BackendError("several ranks run one engine at a time; shut the first one down")
        self._opened = True
        self._crew.tell("open", config=asdict(config))

    def agree(self, fingerprint: str, limits: Mapping[str, int]) -> dict[str, int]:
        """Wait until all ranks have loaded the model; return each limit's smallest value.

        Raises:
            BackendError: a rank was lost, could not load its share, or has other weights.
        """
        least = dict(limits)
        for peer in self._crew.peers:
            found = peer.next().note
            if found["fingerprint"] != fingerprint:
                self._crew.tell("refused")
                raise BackendError(
                    f"{peer} has other weights or another configuration of the model than rank 0 "
                    f"(digest {found['fingerprint']} there, {fingerprint} here); copy the model's "
                    "folder from one machine to the others"
                )
            least = {name: min(value, found["limits"][name]) for name, value in least.items()}
        self._crew.tell("agreed", limits=least)
        return least

    def attach(self, fail_engine: Callable[[str], None]) -> None:
        """Set the function that ends all requests of the open engine when a rank is lost."""
        self._crew.fail_engine = fail_engine

    def broadcast(self, runner: Runner) -> Runner:
        """Return a runner that runs plans on all ranks, by `runner` on this one."""
        return BroadcastingRunner(runner, self._crew)

    def sampler(self) -> type[Sampler]:
        """Return the class of samplers that hand their tokens to the other ranks."""
        return sampler_of(SendingSampler, self.group)

    def features(self, features: PictureFeatures | None) -> PictureFeatures | None:
        """Return picture features that reach all ranks; None for a model without pictures."""
        return None if features is None else SendingFeatures(features, self.group)

    @property
    def folder(self) -> str:
        """Name of this rank's folder, which is inside the folder of the disk cache."""
        return folder_of(0, self.size)

    def store(self, own: DiskStore, on_read: Callable[[], None]) -> SendingStore:
        """Return a store of blocks that reads them on all ranks; see `SendingStore`."""
        return SendingStore(own, self._crew, on_read)

    def identity(self, mine: str) -> str:
        """Wait until all ranks have opened their disk caches; return the identity of all parts.

        Raises:
            BackendError: a rank was lost, or cannot open its disk cache.
        """
        return identity_of_all([mine, *(p.next().note["identity"] for p in self._crew.peers)])

    def close_engine(self) -> None:
        """Let the other ranks drop their share of the engine, and wait for the next one."""
        self._crew.fail_engine, self._opened = None, False
        self._crew.tell("close")

    def leave(self) -> None:
        """End the other ranks, when this process ends."""
        self._crew.leave()
