"""Choice of how many guessed tokens a step verifies, for the most expected tokens per second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sgl_mlx.runtime.speculation.costs import Costs

_GAIN = 1.1
"""Least factor by which drafts must raise the expected tokens per second, or nothing is drafted:
leaving a decode epoch costs a little too."""
_MOST_OF_MODEL = 8
"""Most tokens that a draft model guesses at once."""


class Guess(NamedTuple):
    """Length of a proposal, and the chance that a token is accepted if all before it are."""

    length: int
    likelihood: float


class Step(NamedTuple):
    """A step without drafts: how many tokens it samples and computes, and how long it takes."""

    sampled: int
    tokens: int
    seconds: float


def lengths(
    guesses: Mapping[str, Guess], plain: Step, extend_seconds: list[float]
) -> dict[str, int]:
    """Choose how many tokens of each guess to verify; sequences with none to verify are left out.

    A draft's token `i` (from 1) is accepted with probability `likelihood ** i`. Tokens are added in
    the order of that probability, and the number with the most expected tokens per second wins.

    Args:
        guesses: one guess for each sequence id.
        plain: the step that would run without drafts.
        extend_seconds: seconds of an `Extend` of `plain.tokens + i` tokens, by `i`; bounds the
            number of drafted tokens.
    """
    steps = sorted(
        (
            (guess.likelihood**i, name)
            for name, guess in guesses.items()
            for i in range(1, guess.length + 1)
        ),
        key=lambda step: -step[0],
    )
    best_rate, best_count = _GAIN * plain.sampled / plain.seconds, 0
    expected = float(plain.sampled)
    for count, ((likelihood, _), seconds) in enumerate(
        zip(steps, extend_seconds[1:], strict=False), start=1
    ):
        expected += likelihood
        if expected / seconds > best_rate:
            best_rate, best_count = expected / seconds, count
    chosen: dict[str, int] = {}
    for _, name in steps[:best_count]:
        chosen[name] = chosen.get(name, 0) + 1
    return chosen


def model_length(
    rows: int, likelihood: float, plain: Step, extend_seconds: list[float], drafter: Costs
) -> int:
    """Choose how many tokens a draft model should guess for each of `rows` sequences; 0 for none.

    Guessing `k` tokens takes the draft model one step over what it has not computed yet, and `k -
    1` decode steps.

    Args:
        likelihood: chance that a guessed token is accepted if all tokens before it are.
        plain, extend_seconds: see `lengths`.
        drafter: costs of the draft model's steps.
    """
    best_rate, best = _GAIN * plain.sampled / plain.seconds, 0
    for k in range(1, _MOST_OF_MODEL + 1):
        if rows * k >= len(extend_seconds):
            break
        expected = plain.sampled + rows * sum(likelihood**i for i in range(1, k + 1))
        drafting = drafter.of_extend(2 * rows) + (k - 1) * drafter.of_decode(rows)
        rate = expected / (extend_seconds[rows * k] + drafting)
        if rate > best_rate:
            best_rate, best = rate, k
    return best
