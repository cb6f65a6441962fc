"""Ablations: our engine with one part switched off (SGLang paper, section 6.4.2).

The effect is read from an exact count, not from times; `Ablation.shows` names the count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.benchmarks.peers.ours import Ours
from sgl_mlx.errors import BenchmarkError


@dataclass(frozen=True)
class Ablation:
    """One part of our engine switched off.

    Args:
        about: what the engine does without the part, in a few words.
        shows: the count in `OurSession.details` that grows on workloads that use the part.
        options: engine options that switch the part off.
        ours: arguments of `Ours` that switch the part off.
    """

    about: str
    shows: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)


ABLATIONS: dict[str, Ablation] = {
    "no-cache": Ablation(
        "every prompt is computed anew", "computed_tokens", {"disable_radix_cache": True}
    ),
    "no-tree": Ablation(
        "a table of whole prompts in place of the tree",
        "computed_tokens",
        {"whole_prompts_only": True},
    ),
    "fcfs": Ablation("first come, first served", "computed_tokens", {"schedule_policy": "fcfs"}),
    "random": Ablation("a random order", "computed_tokens", {"schedule_policy": "random"}),
    "no-in-flight-sharing": Ablation(
        "requests that come together compute what they share each for itself",
        "computed_tokens",
        {"in_flight_sharing": False},
    ),
    "no-fork-hint": Ablation(
        "branches ask at once, whether or not their prompt is computed; without sharing in flight, "
        "which does the same for all requests",
        "computed_tokens",
        {"in_flight_sharing": False},
        {"prefills_forks": False},
    ),
    "no-parallelism": Ablation(
        "branches of a program run one after another", "decode_passes", {}, {"parallel": False}
    ),
    "no-extend": Ablation(
        "each row gathers its whole prefix out of the pool before it is attended",
        "pool_tokens_read",
        {"shared_attention": False},
    ),
    "no-chunked-prefill": Ablation(
        "prompts are computed in one step, however long, and decoding waits",
        "longest_step",
        {"chunked_prefill_size": 1 << 20},
    ),
}


def ablated(name: str, options: Mapping[str, Any]) -> Ours:
    """Return our engine with one part switched off, as a system named after the ablation.

    Args:
        name: a key of `ABLATIONS`.
        options: engine options; the ablation's options override these.

    Raises:
        BenchmarkError: when no ablation has this name.
    """
    if name not in ABLATIONS:
        raise BenchmarkError(f"no ablation {name!r}; there are {', '.join(ABLATIONS)}")
    found = ABLATIONS[name]
    return Ours({**options, **found.options}, name=name, **found.ours)
