"""Answers of `Engine.generate` in SGLang's shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sgl_mlx.core import Completion, GenerateResult, PartialCompletion, StreamEvent


def grow(samples: Sequence[PartialCompletion], event: StreamEvent) -> GenerateResult:
    """Add a stream event to its sample in `samples`; return that sample's answer so far.

    With several samples, the answer's "index" is the number of the sample.
    """
    samples[event.sample].add(event)
    result = samples[event.sample].to_dict()
    if len(samples) > 1:
        result["index"] = event.sample
    return result


def shape(
    answers: Sequence[tuple[Completion, ...]], single: bool
) -> GenerateResult | list[GenerateResult]:
    """Return finished samples as dictionaries in SGLang's shape.

    Args:
        answers: the samples of each prompt.
        single: True if the call gave one prompt, not a list.

    Returns:
        One dictionary if a single prompt has one sample; else a list of the dictionaries of all
        samples, prompt by prompt.
    """
    flat = [completion.to_dict() for completion in itertools.chain.from_iterable(answers)]
    return flat[0] if single and len(flat) == 1 else flat
