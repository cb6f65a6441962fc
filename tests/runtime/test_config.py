"""Options of an engine."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.scheduler.cuts import SnapshotPolicy


def test_options_reach_the_scheduler() -> None:
    options = {"max_running_requests": 3, "chunked_prefill_size": 99, "schedule_policy": "fcfs"}
    limits = EngineConfig.of(options).scheduler_limits
    assert (limits.max_running, limits.step_tokens, limits.policy) == (3, 99, "fcfs")


def test_without_a_cache_nobody_waits_for_another_to_fill_it() -> None:
    assert EngineConfig.of({}).scheduler_limits.in_flight_sharing
    assert not EngineConfig.of({"disable_radix_cache": True}).scheduler_limits.in_flight_sharing


def test_options_that_only_sglang_has_are_named_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="no effect on this runtime: mem_fraction_static, tp_size"):
        config = EngineConfig.of({"tp_size": 2, "mem_fraction_static": 0.8, "random_seed": 5})
    assert config.random_seed == 5


def test_an_unknown_option_is_refused_naming_those_there_are() -> None:
    meant = r"'max_tokens'; did you mean 'max_total_tokens'\? known are .*, context_length"
    with pytest.raises(InvalidParamsError, match=meant):
        EngineConfig.of({"max_tokens": 5})


@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
@pytest.mark.parametrize(
    "name",
    [
        "context_length",
        "max_total_tokens",
        "max_running_requests",
        "chunked_prefill_size",
        "max_total_states",
        "max_window_tokens",
    ],
)
def test_sizes_must_be_positive_integers(name: str, value: Any) -> None:
    message = f"{name} must be a positive integer, got {value!r}"
    with pytest.raises(InvalidParamsError, match=message):
        EngineConfig.of({name: value})


@pytest.mark.parametrize("value", [5, 16, 0, "8", True])
def test_the_pool_has_8_bits_or_those_of_the_model(value: Any) -> None:
    with pytest.raises(InvalidParamsError, match=f"kv_bits must be 8, .*, got {value!r}"):
        EngineConfig.of({"kv_bits": value})
    assert EngineConfig.of({"kv_bits": 8}).kv_bits == 8


@pytest.mark.parametrize("value", ["every", "every:0", "every:-5", "every:x", "", "OFF", 5])
def test_snapshots_are_where_programs_branch_or_every_so_many_tokens_or_off(value: Any) -> None:
    with pytest.raises(
        InvalidParamsError, match=r"snapshots must be 'program', 'off' or 'every:N'"
    ):
        EngineConfig.of({"snapshots": value})
    assert EngineConfig.of({}).scheduler_limits.snapshots == SnapshotPolicy("program")
    assert EngineConfig.of({"snapshots": "off"}).scheduler_limits.snapshots.kind == "off"
    every = EngineConfig.of({"snapshots": "every:64"}).scheduler_limits.snapshots
    assert every == SnapshotPolicy("every", 64)


def test_known_options_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EngineConfig.of({"max_total_tokens": None, "dtype": "float16", "offline": True})
