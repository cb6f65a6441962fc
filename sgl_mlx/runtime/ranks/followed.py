"""Part of one engine of rank 0 on another rank: its share of the model, and its pools."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.assembly import context_length
from sgl_mlx.runtime.attention.open import attention_paths
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.disk.copy import PoolCopy
from sgl_mlx.runtime.disk.open import identity, open_store
from sgl_mlx.runtime.pool.capacity import capacity
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.states import StatePool
from sgl_mlx.runtime.ranks.broadcast import run_received
from sgl_mlx.runtime.ranks.channel import Channel, Message
from sgl_mlx.runtime.ranks.disk import ReceivingStore
from sgl_mlx.runtime.ranks.growing import GrowingRows
from sgl_mlx.runtime.ranks.sharing import ReceivingFeatures, ReceivingSampler, sampler_of
from sgl_mlx.runtime.runner import ModelRunner


class FollowedEngine:
    """An engine's part on this rank. It tells rank 0 its limits, and is ready once all agree.

    Args:
        number: number of the engine.
        loaded: this rank's share of the model.
        channel: the connection to rank 0.
        folder: name of this rank's folder within that of the disk cache.
    """

    def __init__(
        self,
        number: int,
        config: EngineConfig,
        loaded: LoadedModel,
        channel: Channel,
        group: mx.distributed.Group,
        folder: str,
    ) -> None:
        self._number, self._config, self._loaded = number, config, loaded
        self._channel, self._group, self._folder = channel, group, folder
        self._disk = ReceivingStore(channel, number)
        self._rows = GrowingRows()
        self._runner: ModelRunner | None = None
        self._adapter = adapter_for(loaded.model)
        self._mine = capacity(self._adapter, config, context_length(config, loaded))
        self._tell(fingerprint=loaded.fingerprint, limits=self._mine.shared)

    def obey(self, message: Message) -> None:
        """Do what rank 0 sends for this engine, except closing it.

        Raises:
            ValueError: the message is of no known kind.
            Any error of a step.
        """
        if message.kind == "note" and message.note["is"] == "agreed":
            self._runner = self._ready(message.note["limits"])
        elif self._runner is None or not (
            run_received(self._runner, message, self._rows) or self._disk.obey(message)
        ):
            raise ValueError(f"rank 0 sent {message.text[:80]!r}, which does not fit here")

    def close(self) -> None:
        """Write what the disk cache has queued."""
        self._disk.close()

    def _ready(self, limits: dict[str, int]) -> ModelRunner:
        """Make the runner, with pools as large as all ranks have room for."""
        config, loaded = self._config, self._loaded
        pool, states = self._mine.within(limits).pools(self._adapter, config)
        return ModelRunner(
            self._adapter,
            pool,
            loaded.tokenizer.eos_token_ids,
            attention_paths(self._adapter, pool, config.shared_attention),
            copy=self._copy(pool, states),
            features=ReceivingFeatures(self._group),
            states=states,
            sampler=sampler_of(ReceivingSampler, self._group),
        )

    def _copy(self, pool: KVPool, states: StatePool | None) -> PoolCopy | None:
        """Open this rank's disk cache and tell rank 0 what it keeps; None without a disk cache."""
        store = open_store(self._config, pool, self._disk.report, states, self._folder)
        if store is None:
            return None
        self._disk.store = store
        self._tell(identity=identity(self._loaded, pool, states))
        return PoolCopy(pool, store, states)

    def _tell(self, **note: Any) -> None:
        self._channel.tell(engine=self._number, **note)
