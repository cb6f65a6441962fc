"""A rank other than 0: it loads its share of the model and runs the plans that rank 0 sends."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any, NoReturn

import mlx.core as mx

from sgl_mlx.errors import BackendError
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import context_length, load_share
from sgl_mlx.runtime.attention.open import attention_paths
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.disk.copy import PoolCopy
from sgl_mlx.runtime.disk.open import identity, open_store
from sgl_mlx.runtime.pool.capacity import capacity
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.states import StatePool
from sgl_mlx.runtime.pool.wired import WiredWeights
from sgl_mlx.runtime.ranks.broadcast import run_received
from sgl_mlx.runtime.ranks.connect import connect
from sgl_mlx.runtime.ranks.disk import ReceivingStore, folder_of
from sgl_mlx.runtime.ranks.group import join_group
from sgl_mlx.runtime.ranks.growing import GrowingRows
from sgl_mlx.runtime.ranks.identity import kill_if_stopped_here
from sgl_mlx.runtime.ranks.launch import Launch
from sgl_mlx.runtime.ranks.peer import Peer, Watch
from sgl_mlx.runtime.ranks.sharing import ReceivingFeatures, ReceivingSampler, sampler_of
from sgl_mlx.runtime.runner import ModelRunner

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
        while not leader.leaving and (note := leader.next().note)["is"] == "open":
            _Engine(leader, group, launch).run(EngineConfig.of(note["config"]))
            gc.collect()
            mx.clear_cache()
    except Exception as error:  # whatever it is, rank 0 has to know
        _report(leader, error)
    watch.stop()
    mx.synchronize()
    os._exit(0)


class _Engine:
    """This rank's share of one engine of rank 0."""

    def __init__(self, leader: Peer, group: mx.distributed.Group, launch: Launch) -> None:
        self._leader, self._group = leader, group
        self._folder = folder_of(launch.rank, launch.size)
        self._disk = ReceivingStore(leader.channel)

    def run(self, config: EngineConfig) -> None:
        """Load the model and run plans until rank 0 closes the engine."""
        loaded = load_share(config, self._group)
        wired = WiredWeights(loaded.weight_bytes)
        runner = self._runner(config, loaded)
        rows = GrowingRows()
        while runner is not None:
            message = self._leader.next()
            if not (run_received(runner, message, rows) or self._disk.obey(message)):
                break
        self._disk.close()
        wired.release()

    def _runner(self, config: EngineConfig, loaded: LoadedModel) -> ModelRunner | None:
        """Make a runner once all ranks have loaded; None if rank 0 gives the engine up."""
        adapter = adapter_for(loaded.model)
        mine = capacity(adapter, config, context_length(config, loaded))
        self._leader.channel.tell(fingerprint=loaded.fingerprint, limits=mine.shared)
        answer = self._leader.next().note
        if answer["is"] == "refused":  # rank 0 says why
            os._exit(1)
        if answer["is"] != "agreed":
            return None
        pool, states = mine.within(answer["limits"]).pools(adapter, config)
        return ModelRunner(
            adapter,
            pool,
            loaded.tokenizer.eos_token_ids,
            attention_paths(adapter, pool, config.shared_attention),
            copy=self._copy(config, loaded, pool, states),
            features=ReceivingFeatures(self._group),
            states=states,
            sampler=sampler_of(ReceivingSampler, self._group),
        )

    def _copy(
        self, config: EngineConfig, loaded: LoadedModel, pool: KVPool, states: StatePool | None
    ) -> PoolCopy | None:
        """Open this rank's disk cache, and tell rank 0 its identity.

        Returns the copier between pools and disk cache; None without a disk cache.
        """
        store = self._disk.store = open_store(config, pool, self._disk.report, states, self._folder)
        if store is None:
            return None
        self._leader.channel.tell(identity=identity(loaded, pool, states))
        return PoolCopy(pool, store, states)


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
