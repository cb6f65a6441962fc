"""`select` for OpenAI's completion models: the API gives no log-probabilities of the choices."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from sgl_mlx.core import ChoiceScore, ChoiceScores, TokenLogprob

TOKENS = 16
"""The number of tokens that the model generates, to compare them with the choices."""


def scores(text: str, choices: Sequence[str], prompt_tokens: int) -> ChoiceScores:
    """Score each choice by the length of the beginning that it shares with the model's `text`.

    Leading blanks are ignored. A score is the fraction of the choice's characters that is shared,
    minus 1. The score is returned as the log-probability of one token, because `select` compares
    log-probabilities. Among equal scores, the longest choice is best. If no choice shares its first
    character with the text, a warning says so, and the first choice is best.
    """
    written = text.lstrip()
    shares = [_share(written, choice.lstrip()) for choice in choices]
    if not any(shares):
        warnings.warn(
            f"the model went on with {text[:40]!r}, which begins none of the choices "
            f"{list(choices)!r}; the first is taken",
            stacklevel=2,
        )
        shares = [float(i == 0) for i in range(len(choices))]
    entries = [
        TokenLogprob(share - 1.0 - 1e-6 / len(choice), 0, choice)
        for share, choice in zip(shares, choices, strict=True)
    ]
    rows = tuple(ChoiceScore(entry.text or "", (entry,), (entry,)) for entry in entries)
    return ChoiceScores(rows, prompt_tokens, 0)


def _share(text: str, choice: str) -> float:
    common = os.path.commonprefix([text, choice])  # noqa: RUF071  (by character)
    return len(common) / len(choice) if choice else 0.0
