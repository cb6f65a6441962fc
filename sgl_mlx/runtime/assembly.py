"""Assembly of an engine's parts around a model: adapter, pool, runner, cache and scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.architectures import RunPath, adapter_for
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.models.lora_shares import with_adapter_in
from sgl_mlx.models.memory import total_bytes
from sgl_mlx.models.pooling import Pooling
from sgl_mlx.runtime.attention.open import attention_paths
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.constraints.grammar import GrammarCompiler
from sgl_mlx.runtime.constraints.healing import Spellings
from sgl_mlx.runtime.disk.open import DiskTier, open_disk_tier
from sgl_mlx.runtime.pool.capacity import capacity
from sgl_mlx.runtime.pool.memory import limit_cache, warn_if_large
from sgl_mlx.runtime.pool.wired import WiredWeights
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.sampler import Sampler
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import Runner
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.speculation.costs import Costs
from sgl_mlx.runtime.speculation.drafting import (
    described,
    draft_model,
    load_draft,
    open_speculation,
)
from sgl_mlx.runtime.speculation.head_runner import HeadRunner
from sgl_mlx.runtime.speculation.mtp import MtpDrafter, measure_head, open_head
from sgl_mlx.runtime.speculation.speculator import Speculation
from sgl_mlx.runtime.vision.features import Features
from sgl_mlx.runtime.vision.pictures import Pictures
from sgl_mlx.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sgl_mlx.runtime.ranks.engine import Ranks  # imported by several ranks alone

_DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class RunnableModel:
    """A loaded model and the parts that run it, for `EngineLoop`.

    Only the engine thread may use `runner` and `scheduler`.

    Attributes:
        module: the mlx-lm module.
        vocabulary: number of logits of a token.
        context_length: most tokens of prompt and output together.
        slots: most slots of the KV pool.
        max_running: most sequences that run at once.
        path: "ragged" if a step computes all sequences in one forward pass, "dense" if one by one.
        recurrent: True if layers keep recurrent state, so that positions cannot be rearranged.
        wired: the engine's share of wired memory (locked, never paged out), to be released at the
            end.
        disk: the disk cache; None without one.
        costs: measured durations of steps; None without speculation.
        ranks: the other ranks that run the model too; None if this process runs it alone.
        pooling: how embeddings are made; None for a model that only generates text.
    """

    name: str
    module: nn.Module
    tokenizer: Tokenizer
    vocabulary: int
    context_length: int
    slots: int
    max_running: int
    path: RunPath
    recurrent: bool
    load_seconds: float
    runner: Runner
    scheduler: Scheduler
    grammars: GrammarCompiler
    pictures: Pictures
    wired: WiredWeights
    disk: DiskTier | None = None
    costs: Costs | None = None
    ranks: Ranks | None = None
    pooling: Pooling | None = None

    @property
    def whole_module(self) -> nn.Module:
        """The mlx-lm module, for functions that call it.

        Raises:
            UnsupportedModelError: several ranks run the model. A call would wait for ever.
        """
        if self.ranks is not None:
            raise UnsupportedModelError(
                f"{self.name} runs over {self.ranks.size} ranks, and each process has only its "
                "share of the module, which cannot be called without the others; use generate(), "
                "score() or submit(), which run on all ranks, or run_on_thread() for a function "
                "that does not need the module, or start one process without mlx.launch"
            )
        return self.module

    @property
    def joins(self) -> bool:
        """True if the KV of branches can be joined to one prefix, and positions can be skipped."""
        return self.path == "ragged" and not self.recurrent

    @cached_property
    def spellings(self) -> Spellings:
        """Look-up tables of token healing, made at the first access."""
        return Spellings(self.tokenizer, self.vocabulary)


OpenModel = Callable[[EngineConfig, Callable[[], None], LoadedModel | None], RunnableModel]
"""The signature of `open_model`, and of functions like it that use another runner."""


def open_model(
    config: EngineConfig,
    on_read: Callable[[], None],
    loaded: LoadedModel | None = None,
    ranks: Ranks | None = None,
) -> RunnableModel:
    """Load a model and assemble an engine around it; call it on the thread that will run it.

    Args:
        on_read: called on another thread when a read from the disk cache has finished.
        loaded: a model that is loaded already; then `config.model_path` is ignored. The weights of
            this model are not wired (locked in memory) here, because other engines may share them.
        ranks: the other ranks, which run the model together with this process; None for none.

    Raises:
        ModelError, MemoryLimitError: see `models.loader.load` and `pool.capacity`.
        InvalidParamsError: the folder of the disk cache cannot be used, the draft model has another
            vocabulary, or `config.schedule_policy` or `SGL_MLX_WIRED` has an unknown value.
        KernelError: the environment asks for kernels that are unknown or not available.
    """
    started = time.perf_counter()
    to_wire = 0
    if ranks is not None:
        loaded = ranks.load()
    else:
        if loaded is None:
            loaded = load_share(config)
            to_wire = loaded.weight_bytes
        loaded = adapted(loaded, config)
    parts = _Assembly(loaded, config, on_read, ranks)
    return parts.model(started, WiredWeights(to_wire))


def load_share(config: EngineConfig, group: mx.distributed.Group | None = None) -> LoadedModel:
    """Load the model that a configuration names, or this rank's share of it in a group."""
    return load(
        config.model_path,
        offline=config.offline,
        dtype=config.dtype,
        mmproj=config.mmproj,
        group=group,
        whole_layers=config.pipeline,
    )


def adapted(
    loaded: LoadedModel, config: EngineConfig, group: mx.distributed.Group | None = None
) -> LoadedModel:
    """Return a model with the adapter that a configuration names, or as it is if it names none.

    Args:
        group: the ranks among which `loaded` was divided; None if it is whole.
    """
    if config.adapter is None:
        return loaded
    return with_adapter_in(config.adapter, loaded, group)


class _Assembly:
    """The parts of an engine around a loaded model.

    The models and the pools are made at once, the other parts when they are first read.

    Args:
        on_read: called on another thread when a read from the disk cache has finished.
        ranks: as for `open_model`.

    Raises:
        The same errors as `open_model`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        on_read: Callable[[], None],
        ranks: Ranks | None,
    ) -> None:
        self._loaded, self._config, self._ranks = loaded, config, ranks
        self._on_read = on_read
        self._adapter = adapter = adapter_for(loaded.model)
        self._draft = load_draft(config, loaded)
        alone = ranks is None and self._draft is None
        self._head = open_head(config.speculate, loaded, adapter, alone=alone)
        if self._head is not None:
            adapter.layers = [*adapter.layers, *self._head.adapter.layers]
        self._context = context_length(config, loaded)
        room = capacity(adapter, config, self._context)
        if ranks is not None:
            room = room.within(ranks.agree(loaded.fingerprint, room.shared))
        self._room = room
        self._pool, self._states = room.pools(adapter, config)
        warn_if_large(loaded.weight_bytes, self._pool.nbytes + room.budget.nbytes, total_bytes())
        limit_cache()

    def model(self, started: float, wired: WiredWeights) -> RunnableModel:
        """Return the model with all its parts.

        Args:
            started: `time.perf_counter()` before loading, from which `load_seconds` counts.
            wired: the model's share of wired (locked) memory, which `EngineLoop` releases at its
                end.
        """
        loaded, config, adapter = self._loaded, self._config, self._adapter
        limits, speculation = self._limits, self._speculation
        scheduler = Scheduler(self._cache, limits, speculation=speculation)
        self._runner.lookup = scheduler.lookup
        loaded.tokenizer.limits = config.limits
        return RunnableModel(
            name=loaded.name,
            module=loaded.model,
            tokenizer=loaded.tokenizer,
            vocabulary=adapter.vocabulary,
            context_length=self._context,
            slots=self._room.slots,
            max_running=limits.max_running,
            path="ragged" if adapter.ragged else "dense",
            recurrent=bool(adapter.states),
            load_seconds=time.perf_counter() - started,
            runner=self._shared_runner,
            scheduler=scheduler,
            grammars=GrammarCompiler(loaded.tokenizer, adapter.vocabulary, config.limits),
            pictures=self._pictures(),
            wired=wired,
            disk=self._disk,
            costs=speculation.costs if speculation is not None else None,
            ranks=self._ranks,
            pooling=loaded.pooling,
        )

    @cached_property
    def _paths(self) -> AttentionPaths:
        return attention_paths(self._adapter, self._pool, self._config.shared_attention)

    @property
    def _limits(self) -> SchedulerLimits:
        """The scheduler's limits, for what the memory holds and the model can do."""
        room, adapter = self._room, self._adapter
        limits = replace(
            self._config.scheduler_limits,
            max_running=room.budget.running,
            snapshots=room.snapshots,
        )
        if not adapter.ragged:
            limits = replace(limits, epoch_steps=1)
        if adapter.layers and (self._paths.copies or not adapter.ragged):
            limits = replace(limits, most_held=room.copied)
        return limits

    @cached_property
    def _disk(self) -> DiskTier | None:
        return open_disk_tier(
            self._config, self._loaded, self._pool, self._on_read, self._states, self._ranks
        )

    @cached_property
    def _cache(self) -> PrefixCache:
        room, states, disk = self._room, self._states, self._disk
        return PrefixCache(
            self._pool.slots,
            self._config.reuse,
            disk.tier if disk else None,
            most=room.slots,
            states=room.budget.slots,
            first_states=states.slots if states is not None else None,
            state_tier=disk.states if disk else None,
            windows=room.windows.slots,
        )

    @cached_property
    def _runner(self) -> ModelRunner:
        ranks, disk = self._ranks, self._disk
        features = self._features()
        return ModelRunner(
            self._adapter,
            self._pool,
            self._loaded.tokenizer.eos_token_ids,
            self._paths,
            copy=disk.copy if disk else None,
            features=features if ranks is None else ranks.features(features),
            states=self._states,
            sampler=Sampler if ranks is None else ranks.sampler(),
            head=self._head_runner,
        )

    @cached_property
    def _shared_runner(self) -> Runner:
        """The runner that the engine calls: on several ranks it broadcasts each plan."""
        return self._runner if self._ranks is None else self._ranks.broadcast(self._runner)

    @cached_property
    def _head_runner(self) -> HeadRunner | None:
        """The prediction head's runner, whose layer is the pool's last; None without a head."""
        if self._head is None:
            return None
        last = len(self._pool.layers) - 1
        mine = self._pool.only(last)
        paths = attention_paths(self._head.adapter, mine, self._config.shared_attention)
        return HeadRunner(self._head, last, mine, paths, self._loaded.tokenizer.eos_token_ids)

    @cached_property
    def _speculation(self) -> Speculation | None:
        """The drafters, and a prediction head or draft model if there is one; None if off."""
        free_states = self._states.slots if self._states is not None else 0
        found = open_speculation(
            self._config.speculate,
            described(self._loaded, self._head_runner),
            self._cache,
            self._shared_runner,
            free_states,
        )
        if found is None:
            return None
        if self._head_runner is not None:
            costs = measure_head(self._head_runner, self._pool.slots)
            return found._replace(model=MtpDrafter(self._runner.draft, costs))
        if self._draft is not None:
            most, vocabulary = self._cache.most, self._adapter.vocabulary
            model = draft_model(self._draft, self._context, most, vocabulary)
            return found._replace(model=model)
        return found

    def _features(self) -> Features | None:
        loaded = self._loaded
        if loaded.vision is None:
            return None
        if not self._adapter.takes_embeddings:
            raise UnsupportedModelError(
                f"{loaded.name}: its language model takes tokens alone, so it cannot be shown "
                "pictures"
            )
        return Features(loaded.vision, self._config.image_cache_bytes)

    def _pictures(self) -> Pictures:
        loaded, config = self._loaded, self._config
        ends = loaded.tokenizer.eos_token_ids
        return Pictures(
            loaded.vision,
            loaded.name,
            min(ends, default=0),
            config.image_cache_bytes,
            config.limits,
        )


def context_length(config: EngineConfig, loaded: LoadedModel) -> int:
    """Return the most tokens of prompt and output together."""
    text = loaded.config.get("text_config") or loaded.config
    model = int(text.get("max_position_embeddings") or _DEFAULT_CONTEXT)
    return config.context_length or model
