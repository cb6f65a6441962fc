"""Scores of choices after a prompt: what `select` decides on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgl_mlx.core import ChoiceScore, ChoiceScores, Completion, TokenLogprob
from sgl_mlx.runtime.request.encode import Encoded, extend
from sgl_mlx.tokenizer import Tokenizer


def continue_with(prompt: Encoded, choice: str, tokenizer: Tokenizer) -> tuple[Encoded, int]:
    """Prompt + choice, and the first own token in which it differs from the prompt alone.

    A last prompt token that merges with the choice is among those that differ, so the choice is
    scored in the tokenization that the whole text has (token healing).
    """
    tokens = extend(prompt, choice, tokenizer)
    pairs = zip(tokens, prompt.tokens, strict=False)
    same = len(prompt.tokens) if tokens[: len(prompt.tokens)] == prompt.tokens else None
    if same is None:
        same = next(i for i, (a, b) in enumerate(pairs) if a != b)
    return replace(prompt, tokens=tokens), same


def choice_scores(
    choices: Sequence[str], prompt_tokens: int, found: Sequence[Completion]
) -> ChoiceScores:
    """Put together what the requests found: one a choice, then perhaps one a choice alone."""
    scored, alone = found[: len(choices)], found[len(choices) :]
    return ChoiceScores(
        choices=[
            ChoiceScore(choice, _input(c), _input(alone[i]) if alone else None)
            for i, (choice, c) in enumerate(zip(choices, scored, strict=True))
        ],
        prompt_tokens=prompt_tokens,
        cached_tokens=min(min(c.cached_tokens for c in scored), prompt_tokens),
    )


def _input(completion: Completion) -> tuple[TokenLogprob, ...]:
    assert completion.logprobs is not None
    return completion.logprobs.input
