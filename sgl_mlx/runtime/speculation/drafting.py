"""Assembly of what drafts for an engine: drafters, draft model or prediction head, and costs."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.metal_kernels.mode import VARIABLE
from sgl_mlx.models.architectures import adapter_for
from sgl_mlx.models.loader import LoadedModel, load
from sgl_mlx.models.memory import available_bytes
from sgl_mlx.runtime.attention.open import attention_paths
from sgl_mlx.runtime.cache.prefix_cache import PrefixCache
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.memory import pool_slots
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.plan import Runner
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from sgl_mlx.runtime.speculation.head_runner import HeadRunner
from sgl_mlx.runtime.speculation.measure import kept_costs
from sgl_mlx.runtime.speculation.model import ModelDrafter
from sgl_mlx.runtime.speculation.open import Speculate, drafters
from sgl_mlx.runtime.speculation.pace import Pace
from sgl_mlx.runtime.speculation.speculator import Speculation
from sgl_mlx.runtime.speculation.vocabulary import check_same


def open_speculation(
    speculate: Speculate, described: str, cache: PrefixCache, runner: Runner, states: int
) -> Speculation | None:
    """Open the drafters, and measure steps unless that was done on this machine before.

    Args:
        described: text of all that the costs depend on besides the machine.
        states: see `kept_costs`.

    Returns:
        The drafters and the costs of steps; None for "off", or if the steps cannot be measured.
    """
    found = drafters(speculate, cache.tree)
    if speculate == "off":
        return None
    costs = kept_costs(described, cache.capacity, runner, states)
    return None if costs is None else Speculation(found, costs, pace=Pace())


def described(loaded: LoadedModel, head: HeadRunner | None = None) -> str:
    """Return a text of all that a model's step times depend on, except the machine."""
    model = json.dumps(loaded.config, sort_keys=True, default=str)
    beside = "" if head is None else " with an MTP head"
    return f"{model} {loaded.weight_bytes} {os.environ.get(VARIABLE)}{beside}"


def load_draft(config: EngineConfig, loaded: LoadedModel) -> LoadedModel | None:
    """Load the draft model; return None if no draft model is named.

    Raises:
        ModelError: the draft model cannot be loaded.
        InvalidParamsError: the vocabularies of the draft model and the `loaded` model differ.
    """
    if config.draft is None:
        return None
    draft = load(config.draft, offline=config.offline, dtype=config.dtype)
    check_same(loaded.tokenizer, draft.tokenizer, (loaded.name, draft.name))
    return replace(draft, vision=None)


def draft_model(
    draft: LoadedModel, context: int, most: int, vocabulary: int
) -> ModelDrafter | None:
    """Assemble the draft model, with a KV pool of as many slots as fit, at most `most`.

    Args:
        context: most tokens of a sequence.
        most: most slots of the large model's pool.
        vocabulary: number of tokens that the large model knows.

    Returns:
        The drafter; None if the draft model's steps cannot be measured.

    Raises:
        MemoryLimitError: when not even a small pool fits.
        UnsupportedModelError: for a draft model with recurrent layers.
    """
    adapter = adapter_for(draft.model)
    if adapter.states:
        raise UnsupportedModelError(f"{draft.name} has recurrent layers and cannot draft yet")
    layers, dtype = adapter.layers, adapter.dtype
    slots = min(pool_slots(None, context, layers, dtype, available_bytes()), most)
    pool = KVPool(layers, slots, dtype)
    runner = ModelRunner(
        adapter, pool, draft.tokenizer.eos_token_ids, attention_paths(adapter, pool, share=True)
    )
    costs = kept_costs(described(draft), slots, runner)
    if costs is None:
        return None
    limits = SchedulerLimits(epoch_steps=16 if adapter.ragged else 1)
    return ModelDrafter(Scheduler(PrefixCache(slots), limits), runner, costs, vocabulary)
