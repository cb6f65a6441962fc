"""Options of an engine, named as in SGLang where SGLang has the same option."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sgl_mlx import bounds, names
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.foreign_options import SGLANG_ONLY
from sgl_mlx.limits import DEFAULT_LIMITS, Limits
from sgl_mlx.runtime.cache.prefix_cache import Reuse
from sgl_mlx.runtime.scheduler.admission import SchedulerLimits
from sgl_mlx.runtime.scheduler.cuts import SnapshotPolicy
from sgl_mlx.runtime.speculation import open as speculation
from sgl_mlx.runtime.speculation.open import Speculate


@dataclass(frozen=True)
class EngineConfig:
    """The options of an engine.

    Args:
        model_path: a Hugging Face id, folder, GGUF file or alias; None is the default model.
        context_length: most tokens of prompt and output together; None is the model's own limit.
        max_total_tokens: slots (tokens) of the KV pool; None derives the number from free memory.
        max_running_requests: most sequences that run at once.
        chunked_prefill_size: most tokens computed in one step.
        schedule_policy: which waiting sequences start first: "lpm" (longest cached prefix),
            "dfs-weight" (depth first in the radix tree), "fcfs" (earliest arrival) or "random".
        disable_radix_cache: recompute every prompt; to measure what the cache saves.
        whole_prompts_only: reuse an earlier prompt with its answer only as a whole, never a part of
            it; to measure what sharing of parts saves.
        shared_attention: read a prefix that several sequences share only once for all of them.
            False lets each sequence gather its whole prefix; to measure what sharing saves.
        in_flight_sharing: let requests with the same new prefix wait until one has computed it.
        disk_cache_dir: folder for prefixes evicted from the pool, kept across restarts; None for no
            disk cache.
        disk_cache_bytes: most bytes that `disk_cache_dir` may hold.
        random_seed: seed of the generator that seeds requests without a seed of their own.
        dtype: type of the weights: float32, float16, bfloat16 or native (as stored); None lets
            `models.loader.load` choose.
        mmproj: vision tower for a model that is a GGUF file: a GGUF file, or a LLaVA folder.
        image_cache_bytes: most bytes of cached picture features. The same limit holds separately
            for cached pixels.
        kv_bits: 8 stores the KV pool in 8 bits; None stores it in the model's dtype.
        speculate: how to draft tokens that one step verifies together: from the text so far
            ("context"), from what other requests wrote ("tree"), with the prediction head of the
            checkpoint ("mtp"), in all these ways ("auto"), or not at all ("off"). The output is the
            same.
        draft: a small model with the same vocabulary, named as in `model_path`, that guesses tokens
            where `speculate` finds no guess; None for no such model.
        offline: True never contacts the Hugging Face hub.
        snapshots: in models with recurrent layers, the places of a prompt where snapshots of the
            recurrent state are kept: "program" (where prompts branch), "every:N" (each N tokens) or
            "off" (none, so that nothing is reused).
        max_total_states: slots of recurrent state, for running sequences and snapshots together;
            None derives the number from free memory.
        watchdog_seconds: a step that takes longer counts as hung, and requests fail. A step may
            also take four times as long as the longest of its kind did, and a new kind four times
            what known kinds let expect. Before any step is known: twelve times
            `watchdog_seconds`, because kernels may have to be compiled.
        max_window_tokens: slots of the layers with a sliding window, in a model that also has
            layers without a window; None derives the number from free memory.
        pipeline: among several ranks, True gives each rank some layers whole; False gives each
            its share of every layer, if the architecture can be divided so.
        adapter: folder with a LoRA adapter of mlx-lm or PEFT, which is added to the model; None for
            none.
        limits: bounds on requests, as `Limits` or a dictionary of their names and values.
    """

    model_path: str | None = None
    context_length: int | None = None
    max_total_tokens: int | None = None
    max_running_requests: int = 64
    chunked_prefill_size: int = 512
    schedule_policy: str = "lpm"
    disable_radix_cache: bool = False
    whole_prompts_only: bool = False
    shared_attention: bool = True
    in_flight_sharing: bool = True
    disk_cache_dir: str | None = None
    disk_cache_bytes: int = 2_000_000_000
    random_seed: int = 0
    dtype: str | None = None
    mmproj: str | None = None
    image_cache_bytes: int = 512_000_000
    kv_bits: int | None = None
    speculate: Speculate = "auto"
    draft: str | None = None
    offline: bool | None = None
    snapshots: str = "program"
    max_total_states: int | None = None
    watchdog_seconds: float = 8.0
    max_window_tokens: int | None = None
    pipeline: bool = False
    adapter: str | None = None
    limits: Limits = DEFAULT_LIMITS

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EngineConfig:
        """Build a configuration from keyword arguments.

        An option that is None keeps its default. SGLang's options that have no effect here are
        listed in a warning.

        Raises:
            InvalidParamsError: for a name that neither sgl-mlx nor SGLang knows, or a bad value.
        """
        known = {f.name for f in fields(cls)}
        options = {k: v for k, v in options.items() if v is not None}
        foreign = sorted(set(options) - known)
        names.only("engine option", set(foreign) - SGLANG_ONLY, known)
        if foreign:
            warnings.warn(f"no effect on this runtime: {', '.join(foreign)}", stacklevel=3)
        return cls(**{k: v for k, v in options.items() if k in known})._checked()

    @property
    def scheduler_limits(self) -> SchedulerLimits:
        return SchedulerLimits(
            max_running=self.max_running_requests,
            step_tokens=self.chunked_prefill_size,
            policy=self.schedule_policy,
            in_flight_sharing=self.in_flight_sharing and self.reuse == "prefixes",
            snapshots=_policy(self.snapshots),
        )

    @property
    def reuse(self) -> Reuse:
        """How much of earlier prompts is reused: "prefixes", "whole prompts" or "nothing"."""
        if self.disable_radix_cache:
            return "nothing"
        return "whole prompts" if self.whole_prompts_only else "prefixes"

    def _checked(self) -> EngineConfig:
        """Check every option; return a copy in which numpy scalars are Python numbers."""
        taken = {name: rule(name, getattr(self, name)) for name, rule in _RULES.items()}
        if self.disk_cache_dir is not None and self.disable_radix_cache:
            raise InvalidParamsError(
                "disk_cache_dir keeps what the radix cache evicts; do not disable_radix_cache"
            )
        if self.draft is not None and self.speculate in ("off", "mtp"):
            raise InvalidParamsError(
                f'a draft model needs speculate="auto", but it is "{self.speculate}"'
            )
        return replace(self, **taken)


def _kv_bits(name: str, value: object) -> int:
    if bounds.whole(value) != 8:
        bounds.refuse(name, value, "8, or None for the model's own dtype")
    return 8


def _path(name: str, value: object) -> str:
    """Check a path and return it as text; it may contain bytes that are not UTF-8."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        bounds.refuse(name, value, "a path or a name, as text")
    path = os.fsdecode(value)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        bounds.text(name, path)
    return str.__str__(path)


def _policy(snapshots: str) -> SnapshotPolicy:
    kind, _, stride = snapshots.partition(":")
    if kind == "every":
        return SnapshotPolicy("every", int(stride))
    return SnapshotPolicy("off" if kind == "off" else "program")


def _snapshots(name: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"program|off|every:[1-9]\d{0,9}", value):
        bounds.refuse(name, value, "'program', 'off' or 'every:N' with a number of tokens N")
    return str.__str__(value)


_COUNT = bounds.integer(1, bounds.INT64)
_RULES: dict[str, bounds.Rule] = {
    "model_path": bounds.optional(_path),
    "context_length": bounds.optional(_COUNT),
    "max_total_tokens": bounds.optional(_COUNT),
    "max_running_requests": _COUNT,
    "chunked_prefill_size": _COUNT,
    "schedule_policy": bounds.filled_text,
    "disable_radix_cache": bounds.flag,
    "whole_prompts_only": bounds.flag,
    "shared_attention": bounds.flag,
    "in_flight_sharing": bounds.flag,
    "disk_cache_dir": bounds.optional(_path),
    "disk_cache_bytes": _COUNT,
    "random_seed": bounds.integer(-bounds.INT64, bounds.INT64),
    "dtype": bounds.optional(bounds.filled_text),
    "mmproj": bounds.optional(_path),
    "image_cache_bytes": _COUNT,
    "kv_bits": bounds.optional(_kv_bits),
    "speculate": speculation.check,
    "draft": bounds.optional(_path),
    "offline": bounds.optional(bounds.flag),
    "snapshots": _snapshots,
    "max_total_states": bounds.optional(_COUNT),
    "watchdog_seconds": bounds.seconds,
    "max_window_tokens": bounds.optional(_COUNT),
    "pipeline": bounds.flag,
    "adapter": bounds.optional(_path),
    "limits": lambda _, value: Limits.of(value),
}
