"""Choices between texts by log-probabilities, for `/v1/decisions` and `/v1/contexts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgl_mlx.bounds import shown
from sgl_mlx.core import ChoiceScores
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.choices import (
    ChoicesSamplingMethod,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_mlx.server.errors import bad_value

METHODS: dict[str, ChoicesSamplingMethod] = {
    "token_length_normalized": token_length_normalized,
    "greedy_token_selection": greedy_token_selection,
    "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
}


@dataclass(frozen=True)
class Chosen:
    """A choice between texts.

    Attributes:
        index: index of the chosen text.
        probabilities: one for each text; their sum is 1.
        meta: the numbers that led to the choice, as `select` reports them.
    """

    index: int
    probabilities: tuple[float, ...]
    meta: dict[str, Any]


def method_named(name: str | None) -> ChoicesSamplingMethod:
    """Return the choices method of a name, by default `token_length_normalized`.

    Raises:
        HttpError: 400 for an unknown name.
    """
    method = METHODS.get(name or "token_length_normalized")
    if method is None:
        raise bad_value(
            f"choices_method must be one of {', '.join(METHODS)}, got {shown(name)}",
            "choices_method",
        )
    return method


def choose(method: ChoicesSamplingMethod, scores: ChoiceScores) -> Chosen:
    """Choose one of the texts by a method, and give each text a probability.

    The probabilities are a softmax over one number for each text: the mean log-probability of its
    tokens; for `unconditional_likelihood_normalized`, the mean of log p(token | prompt) - log
    p(token); for `greedy_token_selection`, the sum of the log-probabilities of its tokens.

    Raises:
        HttpError: 400 for a text that adds no token to the prompt.
    """
    try:
        decision = method.of(scores)
    except ProgramError as error:
        raise bad_value(str(error), "choices") from error
    texts = [choice.text for choice in scores.choices]
    meta = decision.meta_info
    compared: Sequence[float] = meta.get(
        "normalized_unconditional_prompt_logprobs", meta["normalized_prompt_logprobs"]
    )
    if method is greedy_token_selection:
        compared = [sum(t.logprob or 0.0 for t in choice.tokens) for choice in scores.choices]
    return Chosen(texts.index(decision.decision), _softmax(compared), meta)


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    most = max(values)
    weights = [math.exp(value - most) for value in values]
    total = sum(weights)
    return tuple(weight / total for weight in weights)
