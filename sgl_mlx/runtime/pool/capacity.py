"""The sizes of the pools of keys, values and recurrent states that fit into this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.memory import available_bytes
from sgl_mlx.runtime.cache.window_tier import extra_tokens
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.memory import ENOUGH, copied_slots, pool_slots
from sgl_mlx.runtime.pool.state_memory import NO_STATES, START, StateBudget, state_budget
from sgl_mlx.runtime.pool.states import StatePool
from sgl_mlx.runtime.pool.window_memory import WindowBudget, window_budget
from sgl_mlx.runtime.scheduler.cuts import SnapshotPolicy

_STRIDE = 512
"""Least stride of the policy "program" in tokens; see `SnapshotPolicy.stride`."""


@dataclass(frozen=True)
class Capacity:
    """Numbers of slots and sequences that fit into this machine's memory.

    Attributes:
        slots: most slots of the KV pool.
        copied: slots whose KV a step may copy out of the pool; see `copied_slots`.
        budget: the memory of recurrent states.
        windows: the memory of layers with a sliding window.
        snapshots: where snapshots of recurrent states are left.
    """

    slots: int
    copied: int
    budget: StateBudget
    windows: WindowBudget
    snapshots: SnapshotPolicy

    @property
    def shared(self) -> dict[str, int]:
        """The numbers that must be equal on all ranks of a model, by name."""
        return {
            "slots": self.slots,
            "copied": self.copied,
            "states": self.budget.slots,
            "running": self.budget.running,
            "windows": self.windows.slots.most if self.windows.slots else 0,
        }

    def within(self, limits: Mapping[str, int]) -> Capacity:
        """Return a copy with the sizes in `limits`, a dictionary with the names of `shared`."""
        states, running = limits["states"], limits["running"]
        budget = self.budget._replace(slots=states, running=running)
        windows, most = self.windows, limits["windows"]
        if windows.slots is not None:
            first = min(windows.slots.first, most)
            windows = windows._replace(slots=windows.slots._replace(first=first, most=most))
        slots, copied = limits["slots"], limits["copied"]
        return replace(self, slots=slots, copied=copied, budget=budget, windows=windows)

    def pools(self, adapter: Adapter, config: EngineConfig) -> tuple[KVPool, StatePool | None]:
        """Make the KV pool and the pool of recurrent states (None without states)."""
        first = config.max_total_tokens or min(self.slots, ENOUGH)
        windows = self.windows.slots and self.windows.slots.first
        pool = KVPool(adapter.layers, first, adapter.dtype, config.kv_bits, windows)
        if not adapter.states:
            return pool, None
        return pool, StatePool(adapter.states, min(self.budget.slots, START))


def capacity(adapter: Adapter, config: EngineConfig, context: int) -> Capacity:
    """Compute what fits into the memory that is available now.

    Args:
        context: most tokens of a sequence.

    Raises:
        MemoryLimitError: see `pool_slots`, `window_budget` and `state_budget`.
    """
    available = available_bytes()
    budget = _budget(adapter, config, available)
    available = budget.left(available)
    windows = _windows(adapter, config, budget.running, available)
    memory = adapter.dtype, windows.left(available), config.kv_bits, adapter.ragged
    slots = pool_slots(config.max_total_tokens, context, windows.others, *memory)
    copied = copied_slots(slots, windows.others, *memory) if adapter.layers else slots
    return Capacity(slots, copied, budget, windows, _policy(adapter, config))


def _windows(adapter: Adapter, config: EngineConfig, running: int, available: int) -> WindowBudget:
    """Return the memory of layers with a sliding window that get slots of their own.

    On the dense path, and beside recurrent layers, all layers share their slots.
    """
    if not adapter.ragged or adapter.states:
        return WindowBudget(None, adapter.layers)
    wanted = config.max_total_tokens, config.max_window_tokens
    limits = replace(config.scheduler_limits, max_running=running)
    more = extra_tokens() if config.disk_cache_dir is not None else 0
    kinds = adapter.dtype, config.kv_bits
    return window_budget(adapter.layers, *kinds, wanted, limits, available, more)


def _budget(adapter: Adapter, config: EngineConfig, available: int) -> StateBudget:
    running = config.max_running_requests
    if not adapter.states:
        return NO_STATES._replace(running=running)
    wanted, attends = config.max_total_states, bool(adapter.layers)
    return state_budget(adapter.states, wanted, running, available, attends)


def _policy(adapter: Adapter, config: EngineConfig) -> SnapshotPolicy:
    """Set the stride of the policy "program" by the bytes of a snapshot and of a token's KV.

    So snapshots at the stride take at most four times the bytes of the KV between them.
    """
    policy = config.scheduler_limits.snapshots
    if policy.kind != "program" or not adapter.states:
        return policy
    token = KVPool.bytes_per_slot(adapter.layers, adapter.dtype, config.kv_bits)
    state = StatePool.bytes_per_slot(adapter.states)
    return replace(policy, stride=max(_STRIDE, state // (4 * token)) if token else 4 * _STRIDE)
