"""Checks of a model: whether it is downloaded, and whether weights and KV pool fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sgl_mlx.cli.doctor.check import Check, checked, gib
from sgl_mlx.cli.footprint import adapter_of, kv_dtype, read_config, weight_bytes
from sgl_mlx.errors import MemoryLimitError, ModelNotFoundError
from sgl_mlx.models import memory
from sgl_mlx.models.download import size_text
from sgl_mlx.models.info import describe
from sgl_mlx.models.resolve import is_offline, look_up, resolve
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.memory import ENOUGH, pool_slots
from sgl_mlx.runtime.pool.state_memory import state_budget
from sgl_mlx.runtime.pool.window_memory import WindowBudget, window_budget
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits

_MOST_OF_MACHINE = 0.75
"""If weights and KV pool take more than this share of its memory, a machine is likely to swap."""


@dataclass(frozen=True)
class Needs:
    """Facts about a model that tell how much memory it needs.

    Attributes:
        name: the model's name in error messages.
        weights: size of the weights, in bytes.
        config: the model's configuration, from which the size of the KV pool follows.
    """

    name: str
    weights: int
    config: Mapping[str, Any]


def model_checks(model: str | None) -> Iterator[Check]:
    """Check that a model is on this machine, and that its weights and KV pool fit into memory.

    The sizes of any other model are looked up on the hub, unless offline mode is set. None stands
    for the default model.
    """
    try:
        name, path = resolve(model, offline=True)
    except ModelNotFoundError as error:
        if is_offline():
            yield Check("model", "fail", str(error))
        else:
            yield from _on_the_hub(model)
        return
    yield checked("model", lambda: _described(name, path))
    yield from _fitting(lambda: Needs(name, weight_bytes(path), read_config(path)))


def _on_the_hub(model: str | None) -> Iterator[Check]:
    try:
        found, config = look_up(model)
    except ModelNotFoundError as error:
        yield Check("model", "fail", str(error))
        return
    remedy = f"fetch it by `sgl-mlx models pull {found.repo}`, or use it and it will be fetched"
    detail = f"{found.repo} is not here: {size_text(found.size)} to download; {remedy}"
    yield Check("model", "warn", detail)
    yield from _fitting(lambda: Needs(found.repo, found.weights, config))


def _described(name: str, path: Path) -> Check:
    info = describe(path)
    parameters = f"{info.parameters / 1e6:,.0f} M parameters ({info.quantization})"
    return Check("model", "ok", f"{name}: {info.architecture}, {parameters}, {path}")


def _fitting(needs: Callable[[], Needs]) -> Iterator[Check]:
    yield checked("weights", lambda: weights_row(needs()))
    yield checked("KV pool", lambda: pool_row(needs()))


def weights_row(needs: Needs) -> Check:
    """Check that the weights fit into the memory that is available now."""
    available = memory.available_bytes()
    detail = f"{gib(needs.weights)}, beside {gib(available)} that can be used"
    try:
        memory.check_fits(needs.name, needs.weights, available, "its weights")
    except MemoryLimitError as error:
        return Check("weights", "fail", str(error))
    return Check("weights", "ok", detail)


def pool_row(needs: Needs) -> Check:
    """Check that a new engine's KV pool fits into memory beside the weights; if not, warn."""
    dtype = kv_dtype()
    try:
        adapter, context = adapter_of(needs.config)
    except (KeyError, TypeError) as error:
        return Check("KV pool", "warn", f"the configuration does not tell its size: {error}")
    room, shapes = memory.available_bytes() - needs.weights, adapter.layers
    if adapter.states:
        room = state_budget(adapter.states, None, SchedulerLimits().max_running, room).left(room)
    windows = WindowBudget(None, shapes)
    if adapter.ragged and not adapter.states:
        windows = window_budget(shapes, dtype, None, (None, None), SchedulerLimits(), room)
    room, shapes = windows.left(room), list(windows.others)
    slots = min(pool_slots(None, context, shapes, dtype, room, ragged=adapter.ragged), ENOUGH)
    taken = slots * KVPool.bytes_per_slot(shapes, dtype) + windows.start_bytes
    detail = f"{slots:,} tokens in {gib(taken)}, beside {gib(needs.weights)} of weights"
    total = int(psutil.virtual_memory().total)
    if taken + needs.weights > _MOST_OF_MACHINE * total:
        remedy = f"over {_MOST_OF_MACHINE:.0%} of memory, expect swapping; --kv-bits 8 halves it"
        return Check("KV pool", "warn", f"{detail}: {remedy}")
    return Check("KV pool", "ok", detail)
