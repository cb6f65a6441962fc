"""Rank 0 among several: it schedules, and sends every plan to the other ranks before it runs it."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import mlx.core as mx

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.ranks import identity
from sgl_mlx.runtime.ranks.channel import Channel
from sgl_mlx.runtime.ranks.launch import ADDRESS, Launch
from sgl_mlx.runtime.ranks.peer import Lost, Peer, Watch
from sgl_mlx.runtime.ranks.sharing import SendingFeatures, SendingSampler, sampler_of
from sgl_mlx.runtime.sampler import Sampler
from sgl_mlx.runtime.scheduler.plan import Extend, Plan, Runner, RunnerStats, StepResult
from sgl_mlx.runtime.scheduler.wire import to_json
from sgl_mlx.runtime.vision.features import PictureFeatures

log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Longest wait at the start for another rank's process."""
_GRACE = 2.0
"""Seconds between telling all requests of a lost rank and ending the process."""


class Ranks:
    """Rank 0's connections to all other ranks.

    They live as long as the process, and serve one engine after the other. When a rank is lost,
    all requests end with one error, and soon after them the process: a step in which a rank is
    missing never ends, and nothing else can end it.

    Args:
        launch: how the ranks were launched; this process is rank 0.

    Raises:
        BackendError: a rank does not come within `START_SECONDS`, or does not fit this one.
    """

    def __init__(self, launch: Launch) -> None:
        self.size = launch.size
        self._fail_engine: Callable[[str], None] | None = None
        self._open = False
        self._failing = threading.Lock()
        self._failed = threading.Event()
        self._reason = ""
        self._identity = identity.identity(0, launch.size)
        self._peers: list[Peer] = []
        self._watch: Watch | None = None
        self._peers = _connect(launch, self._identity, self._lost)
        self._watch = Watch(self._peers, self._lost)
        self.group = mx.distributed.init(strict=True, backend=launch.backend)

    # -- engines ------------------------------------------------------------------------------

    def open(self, config: EngineConfig) -> None:
        """Make the other ranks load a model, which `agree` waits for.

        Raises:
            BackendError: the options are not for several ranks, or another engine is open.
        """
        self._check()
        if self._open:
            raise BackendError("several ranks run one engine at a time; shut the first one down")
        refuse(config)
        self._open = True
        self._tell(**{"is": "open", "config": asdict(config)})

    def attach(self, fail_engine: Callable[[str], None]) -> None:
        """Name the function that ends all requests of the open engine when a rank is lost."""
        self._fail_engine = fail_engine

    def agree(self, fingerprint: str, limits: Mapping[str, int]) -> dict[str, int]:
        """Wait until all ranks have loaded the model; return the least of each rank's limits.

        Raises:
            BackendError: a rank was lost, could not load its share, or has other weights.
        """
        least = dict(limits)
        for peer in self._peers:
            found = peer.next().note
            if found["fingerprint"] != fingerprint:
                self._tell(**{"is": "refused"})
                raise BackendError(
                    f"{peer} has other weights or another configuration of the model than rank 0 "
                    f"(digest {found['fingerprint']} there, {fingerprint} here); copy the model's "
                    "folder from one machine to the others"
                )
            least = {name: min(value, found["limits"][name]) for name, value in least.items()}
        self._tell(**{"is": "agreed", "limits": least})
        return least

    def close_engine(self) -> None:
        """Let the other ranks drop their share of the engine, and wait for the next one."""
        self._fail_engine, self._open = None, False
        if not self._failed.is_set():
            self._tell(**{"is": "close"})

    def leave(self) -> None:
        """End the other ranks with the process; called when the interpreter exits."""
        if self._failed.is_set():
            threading.Event().wait(2 * _GRACE)  # `_end` ends the process first
        if self._watch is not None:
            self._watch.stop()
        for peer in self._peers:
            peer.leaving = True
            _quietly(peer.channel.tell, **{"is": "leave"})
            _quietly(peer.channel.close)

    def sampler(self) -> type[Sampler]:
        """Return the class of samplers that hand their tokens to the other ranks."""
        return sampler_of(SendingSampler, self.group)

    def features(self, features: PictureFeatures | None) -> PictureFeatures | None:
        """Make picture features reach the other ranks."""
        return None if features is None else SendingFeatures(features, self.group)

    def broadcast(self, runner: Runner) -> Runner:
        """Return a runner that runs plans on all ranks, by `runner` on this one."""
        return BroadcastingRunner(runner, self)

    # -- plans --------------------------------------------------------------------------------

    def send(self, plan: Plan) -> None:
        """Send a plan to all other ranks."""
        text = to_json(plan)
        self._to_all(lambda peer: peer.channel.send("plan", text))

    def tell(self, what: str) -> None:
        """Send the name of a runner's method without arguments to all other ranks."""
        self._tell(**{"is": what})

    def fail_step(self, error: Exception) -> NoReturn:
        """End everything after a step that failed here: the other ranks may be within it still.

        Never returns. If a rank is lost, which is why steps fail most often, that is the reason.
        """
        if not self._failed.wait(1.0):
            self._end(f"a step failed on rank 0: {type(error).__name__}: {error}")
        while True:
            time.sleep(_GRACE)

    # -- inside -------------------------------------------------------------------------------

    def _tell(self, **note: Any) -> None:
        self._to_all(lambda peer: peer.channel.tell(**note))

    def _to_all(self, send: Callable[[Peer], None]) -> None:
        for peer in self._peers:
            self._check()
            try:
                send(peer)
            except OSError as error:
                self._lost(peer, f"it is gone: {error}", False)
                self._check()

    def _check(self) -> None:
        if self._failed.is_set():
            raise BackendError(self._reason)

    def _lost(self, peer: Peer, why: str, silent: bool) -> None:
        self._end(f"{peer}: {why}", peer if silent else None)

    def _end(self, reason: str, silent: Peer | None = None) -> None:
        """Fail all requests with `reason`, then end this process with code 1; works once."""
        with self._failing:
            if self._failed.is_set():
                return
            self._reason = reason
            self._failed.set()
        log.error("the ranks end: %s", reason)
        if self._watch is not None:
            self._watch.stop()
        for peer in self._peers:
            peer.fail(BackendError(reason))
            _quietly(peer.channel.close)
        if silent is not None:
            identity.kill_if_stopped_here(silent.identity)
        threading.Thread(target=self._exit, name="sgl-mlx end of the ranks", daemon=True).start()

    def _exit(self) -> None:
        if self._fail_engine is not None:
            self._fail_engine(self._reason)
        time.sleep(_GRACE)
        for stream in (sys.stdout, sys.stderr):
            _quietly(stream.flush)
        os._exit(1)


@dataclass(frozen=True)
class BroadcastingRunner:
    """A `plan.Runner` that sends each plan to all other ranks, and runs it here too.

    A step that fails ends all ranks (`Ranks.fail_step`): its trial without one of its rows, which
    `Runner.run` allows, could not begin anywhere, since the other ranks may wait within it.
    """

    runner: Runner
    ranks: Ranks

    def run(self, plan: Plan) -> StepResult:
        """Run a plan on all ranks; return the result of this one."""
        try:
            self.ranks.send(plan)
            return self.runner.run(plan)
        except Exception as error:
            self.ranks.fail_step(error)

    def synchronise(self, transfers: tuple[Any, ...] = ()) -> None:
        """Write all computed KV to the pool and carry out transfers, on all ranks."""
        try:
            self.ranks.send(Extend((), transfers))
            self.runner.synchronise(transfers)
        except Exception as error:
            self.ranks.fail_step(error)

    def forget_epoch(self) -> None:
        """Drop the open epoch on all ranks."""
        self.ranks.tell("forget_epoch")
        self.runner.forget_epoch()

    def stats(self) -> RunnerStats:
        """Return the counts of this rank."""
        return self.runner.stats()


def refuse(config: EngineConfig) -> None:
    """Raise `BackendError` for options that several ranks do not have yet."""
    if config.disk_cache_dir is not None:
        raise BackendError("a disk cache (disk_cache_dir) is for one rank; leave it out")


def _connect(
    launch: Launch, mine: dict[str, Any], lost: Lost
) -> list[Peer]:
    """Listen until every other rank has connected and fits this one."""
    try:
        listener = socket.create_server((launch.host, launch.port))
    except OSError as error:
        raise BackendError(
            f"rank 0 cannot listen on {launch.host}:{launch.port} for the other ranks: {error}; "
            f"set {ADDRESS}=host:port on all ranks"
        ) from error
    channels: dict[int, tuple[Channel, dict[str, Any]]] = {}
    deadline = time.monotonic() + START_SECONDS
    try:
        with listener:
            while len(channels) < launch.size - 1:
                found = _accept(listener, deadline)
                if found is None:
                    missing = sorted(set(range(1, launch.size)) - set(channels))
                    raise BackendError(
                        f"rank {', '.join(map(str, missing))} of {launch.size} did not connect to "
                        f"{launch.host}:{launch.port} within {START_SECONDS:.0f} s"
                    )
                channel, other = found
                channels[int(other["rank"])] = channel, other
                identity.check(mine, other)
    except BackendError as error:
        for channel, _ in channels.values():
            _quietly(channel.tell, **{"is": "error", "text": str(error)})
            channel.close()
        raise
    for channel, _ in channels.values():
        channel.limit(None)
        channel.tell(**{"is": "welcome", "identity": mine})
    return [Peer(channel, other, lost) for _, (channel, other) in sorted(channels.items())]


def _accept(listener: socket.socket, deadline: float) -> tuple[Channel, dict[str, Any]] | None:
    """Wait for the next rank; None after the deadline. Other connections are closed."""
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return None
        channel = Channel(connection)
        channel.limit(5.0)
        try:
            other = channel.receive().note
            if other.get("is") == "hello":
                return channel, other["identity"]
        except (OSError, ValueError, KeyError):
            pass
        channel.close()
    return None


def _quietly(function: Callable[..., object], **arguments: Any) -> None:
    try:
        function(**arguments)
    except OSError:
        pass  # the other end is gone
