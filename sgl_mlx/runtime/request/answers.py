"""Answers of `Engine.generate` in SGLang's shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sgl_mlx.core import Completion, GenerateResult, PartialCompletion, StreamEvent


def grow(samples: Sequence[PartialCompletion], event: StreamEvent) -> GenerateResult:
    """Add an event to its sample; return that sample's answer so far."""
    samples[event.sample].add(event)
    result = samples[event.sample].to_dict()
    if len(samples) > 1:
        result["index"] = event.sample
    return result


def shape(
    answers: Sequence[tuple[Completion, ...]], single: bool
) -> GenerateResult | list[GenerateResult]:
    """Return a dictionary for one sample of one prompt, else a flat list."""
    flat = [completion.to_dict() for completion in itertools.chain.from_iterable(answers)]
    return flat[0] if single and len(flat) == 1 else flat
