"""A rank other than 0: it opens the engines that rank 0 opens, and runs what rank 0 sends."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any, NoReturn

import mlx.core as mx

from sgl_mlx.errors import BackendError, SglError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.ranks.broadcast import engine_of
from sgl_mlx.runtime.ranks.connect import connect
from sgl_mlx.runtime.ranks.disk import folder_of
from sgl_mlx.runtime.ranks.followed import FollowedEngine
from sgl_mlx.runtime.ranks.group import join_group
from sgl_mlx.runtime.ranks.identity import kill_if_stopped_here
from sgl_mlx.runtime.ranks.launch import Launch
from sgl_mlx.runtime.ranks.peer import Peer, Watch
from sgl_mlx.runtime.ranks.share import Share

log = logging.getLogger(__name__)

_VERDICT = 1.5
"""Seconds in which rank 0 may find another rank missing before this one reports a failed step."""


def follow(launch: Launch) -> NoReturn:
    """Run what rank 0 sends until rank 0 leaves, then end this process; exit code 0 means success.

    The program that called this does not go on in this process. Not even its `finally` blocks run.
    """
    with suppress(ValueError):  # not on the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what Ctrl-C ends
    try:
        connected = connect(launch)
        if connected is None:
            os._exit(1)
        leader = Peer(*connected, _lost)
        watch = Watch([leader], _lost)
        group = join_group(launch)
    except BackendError as error:
        log.error("rank %d: %s", launch.rank, error)
        os._exit(1)
    try:
        _Followed(leader, group, launch).run()
    except Exception as error:  # whatever it is, rank 0 has to know
        _report(leader, error)
    watch.stop()
    mx.synchronize()
    os._exit(0)


class _Followed:
    """The engines of rank 0 that are open, and this rank's share of their model."""

    def __init__(self, leader: Peer, group: mx.distributed.Group, launch: Launch) -> None:
        self._leader, self._group, self._launch = leader, group, launch
        self._share = Share(group)
        self._engines: dict[int, FollowedEngine] = {}

    def run(self) -> None:
        """Do what rank 0 sends until it leaves."""
        while True:
            message = self._leader.next()
            note: dict[str, Any] = message.note if message.kind == "note" else {"is": "plan"}
            if note["is"] == "leave":
                return
            number = engine_of(message)
            if note["is"] == "open":
                self._open(number, EngineConfig.of(note["config"]))
            elif note["is"] == "refused" and len(self._engines) == 1:
                os._exit(1)  # rank 0 says why
            elif note["is"] in ("close", "refused"):
                self._close(number)
            elif number in self._engines:
                self._engines[number].obey(message)

    def _open(self, number: int, config: EngineConfig) -> None:
        """Load an engine's model. An error ends the rank, unless other engines are open."""
        self._share.take(number, config)
        try:
            loaded = self._share.load(number)
            channel = self._leader.channel
            folder = folder_of(self._launch.rank, self._launch.size)
            engine = FollowedEngine(number, config, loaded, channel, self._group, folder)
        except (SglError, OSError) as error:
            if not self._engines:
                raise
            self._share.drop(number)
            fault = f"{type(error).__name__}: {error}"
            self._leader.channel.tell(engine=number, fault=fault)
            return
        self._engines[number] = engine

    def _close(self, number: int) -> None:
        engine = self._engines.pop(number, None)
        if engine is not None:
            engine.close()
            del engine
        self._share.drop(number)
        gc.collect()
        mx.clear_cache()


def _lost(leader: Peer, why: str, silent: bool) -> None:
    """End this process at once, because it may be within a step that never returns.

    If the leader is `silent`, kill it too, in case it is a stopped process on this machine.
    """
    if silent:
        kill_if_stopped_here(leader.identity)
    log.error("%s: %s", leader, why)
    os._exit(1)


def _report(leader: Peer, error: Exception) -> NoReturn:
    """Tell rank 0 about an error, and end this process.

    If another rank is missing, steps fail everywhere: rank 0 then ends this process first.
    """
    time.sleep(_VERDICT)
    told: dict[str, Any] = {"is": "error", "text": f"{type(error).__name__}: {error}"}
    with suppress(OSError):
        leader.channel.tell(**told)
        time.sleep(_VERDICT)
    os._exit(1)
