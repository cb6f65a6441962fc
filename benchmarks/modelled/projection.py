"""Modelled times of the suite on Apple chips, from exact token counts.

Nothing runs on a Mac. `token_counts` counts the tokens that our engine and llama-server compute.
`apple` turns counts into times. The formulas are the same for both systems.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.benchmarks.modelled.apple import ENCODE_SHARE, KV_SHARE, SOURCE, Machine, Model
from sgl_mlx.benchmarks.modelled.llama_server_slots import SIMILAR
from sgl_mlx.benchmarks.modelled.token_counts import IMAGE_TOKENS, Counts, Work, count, vocabulary
from sgl_mlx.benchmarks.suite.workloads.workload import Size, Workload


@dataclass(frozen=True)
class Projected:
    """Modelled times of one workload on one machine, for our engine and for llama-server."""

    name: str
    machine: Machine
    counts: Counts

    @property
    def ours(self) -> float:
        return self.machine.seconds(self.counts.ours)

    @property
    def llama_server(self) -> float:
        return self.machine.seconds(self.counts.slots)

    @property
    def ratio(self) -> float:
        return self.llama_server / self.ours

    def to_dict(self) -> dict[str, Any]:
        return {
            "modelled": True,
            "name": self.name,
            "chip": self.machine.chip.name,
            "model": self.machine.model.name,
            "quant": self.machine.quant,
            "calls": self.counts.calls,
            "prompt_tokens": self.counts.prompt_tokens,
            "output_tokens": self.counts.output_tokens,
            "ours": _side(self.counts.ours, self.ours),
            "llama_server": _side(self.counts.slots, self.llama_server),
            "ratio": round(self.ratio, 3),
        }


def _side(work: Work, seconds: float) -> dict[str, Any]:
    return {**vars(work), "context": round(work.context, 1), "seconds": round(seconds, 3)}


def project(
    machine: Machine, workloads: Sequence[Workload], size: Size, concurrency: int | None = None
) -> Iterator[Projected]:
    """Yield the modelled times of each workload, as soon as its tokens are counted.

    Args:
        concurrency: programs at a time, for workloads that run several at a time; None takes each
            workload's own number.
    """
    tokenizer, words = vocabulary()
    for workload in workloads:
        together = workload.concurrency
        if concurrency is not None and together > 1:
            together = concurrency
        counts = count(workload, workload.rows(words, size), together, tokenizer, words)
        yield Projected(workload.name, machine, counts)


def fitting(model: Model, workloads: Sequence[Workload]) -> list[Workload]:
    """Return the workloads with pictures for a vision model, those without for a text model.

    A LLaVA takes as long as its language model for workloads without pictures, so these workloads
    are left out for vision models.
    """
    sees = model.tower is not None
    return [workload for workload in workloads if ("images" in workload.needs) == sees]


def geometric_mean(rows: Sequence[Projected]) -> float:
    return statistics.geometric_mean(row.ratio for row in rows)


def assumptions(machine: Machine, concurrency: int | None) -> list[str]:
    """Return the assumptions that the modelled times depend on, one per line."""
    chip, model = machine.chip, machine.model
    lines = [
        f"{chip.name}: {chip.bandwidth:g} GB/s, {chip.tflops:g} TFLOPS at float16, the latter "
        "from cores and clock",
        f"prompts reach {machine.prefill_share:.0%} of the peak, weights are read at "
        f"{machine.decode_share:.0%} of the bandwidth, as published: {SOURCE}",
        f"{model.name}: {model.parameters / 1e9:g} G parameters of {machine.bits:g} bits "
        f"({machine.quant}); {model.kv_bytes / 2**20:g} MiB of keys and values per token, at "
        "float16",
        "prefill: tokens computed x FLOPs of the matrices / reached peak; attention is left out",
        "a decode step is the longer of two: reading the weights once and each row's keys and "
        f"values at {KV_SHARE:.0%} of the bandwidth, or the rows' FLOPs / reached peak",
        "prefix keys and values shared by rows are read once for each row, on both sides",
        f"{concurrency or 'as many as the workload says'} programs at a time, where it runs "
        "several; batches are always full, with one call of each",
        "prefill and decode never overlap; no time for tokenizing, sampling, HTTP or scheduling",
        "tokens: each word, number and run of signs is one; lengths are those of the suite",
        "outputs are steered, so that later calls have the same prompts on both sides",
        "any context length runs, and memory holds all keys and values: ours evicts nothing, "
        "and reads nothing from disk",
        "ours computes the optimum of Theorem 3.1 (arXiv 2312.07104); llama-server "
        "has one slot for each program at a time, and computes what a slot's last call lacks",
        f"a call takes the idle slot with the longest common prefix, if above {SIMILAR:.0%} of "
        "its prompt, else the one used longest ago; --cache-ram is left out",
        "a program's calls come from the shortest prompt to the longest, branches one by one",
        "tokens forced by a grammar: ours computes them as it does a prompt, llama-server "
        "decodes them",
        "joined documents are computed as one prompt on both sides",
    ]
    if model.tower is not None:
        lines.append(
            f"a picture has {IMAGE_TOKENS} tokens and takes {machine.encode_seconds * 1e3:.0f} ms "
            f"to encode: {model.tower.flops(model.hidden) / 1e9:.0f} GFLOPs at "
            f"{ENCODE_SHARE:.0%} of the peak; it is opened and resized in no time"
        )
    return lines
