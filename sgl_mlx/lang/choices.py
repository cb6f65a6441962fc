"""The methods with which `select` chooses, from the log-probabilities of the choices' tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sgl_mlx.core import ChoiceScores
from sgl_mlx.errors import ProgramError

TokenLogprobs = Sequence[Sequence[Any]]
"""The tokens of one choice, as in SGLang: each is a list `[logprob, token_id, text]`."""


@dataclass(frozen=True)
class ChoicesDecision:
    """The chosen text (`decision`), and in `meta_info` the numbers that led to it."""

    decision: str
    meta_info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LateDecision(ChoiceScores):
    """A stand-in for scores from a backend that makes the choice itself.

    Attributes:
        decide: returns the backend's decision for a choices method. It is called on the thread
            that receives this object.
    """

    decide: Callable[[ChoicesSamplingMethod], ChoicesDecision] = field(kw_only=True)


class ChoicesSamplingMethod(ABC):
    """A method to choose between texts. Subclasses implement `__call__`."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """True if the method also needs the log-probabilities of the choices without the prompt."""
        return False

    @abstractmethod
    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[TokenLogprobs],
        output_token_logprobs: Sequence[TokenLogprobs],
        unconditional_token_logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> ChoicesDecision:
        """Return the decision. Every argument has one item for each choice.

        Args:
            choices: the texts to choose from.
            normalized_prompt_logprobs: the mean log-probability of the choice's tokens.
            input_token_logprobs: the choice's tokens, scored after the prompt.
            output_token_logprobs: tokens generated after the choice; always empty lists.
            unconditional_token_logprobs: the choice's tokens, scored without the prompt; None
                unless `requires_unconditional_logprobs`.
        """

    def of(self, scores: ChoiceScores) -> ChoicesDecision:
        """Return the decision for a backend's scores, with the token counts in its `meta_info`.

        Scores of type `LateDecision` hold the decision of the backend, which is returned unchanged.

        Raises:
            ProgramError: for a choice that adds no token to the prompt.
        """
        if isinstance(scores, LateDecision):
            return scores.decide(self)
        nothing = [choice.text for choice in scores.choices if not choice.tokens]
        if nothing:
            raise ProgramError(f"the choice {nothing[0]!r} adds no token to the prompt")
        usage = {"prompt_tokens": scores.prompt_tokens, "cached_tokens": scores.cached_tokens}
        tokens = [[t.to_list() for t in choice.tokens] for choice in scores.choices]
        alone = [[t.to_list() for t in choice.unconditional or ()] for choice in scores.choices]
        decision = self(
            choices=[choice.text for choice in scores.choices],
            normalized_prompt_logprobs=[_mean(_logprobs(row)) for row in tokens],
            input_token_logprobs=tokens,
            output_token_logprobs=[[] for _ in tokens],
            unconditional_token_logprobs=alone if self.requires_unconditional_logprobs else None,
        )
        return replace(decision, meta_info={**usage, **(decision.meta_info or {})})

    def __repr__(self) -> str:
        return type(self).__name__


class _ByIndex(ChoicesSamplingMethod):
    """Base of methods that only compute the index of the chosen text."""

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: Sequence[float],
        input_token_logprobs: Sequence[TokenLogprobs],
        output_token_logprobs: Sequence[TokenLogprobs],
        unconditional_token_logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> ChoicesDecision:
        best, extra = self.decide(
            normalized_prompt_logprobs, input_token_logprobs, unconditional_token_logprobs
        )
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
            **extra,
        }
        return ChoicesDecision(choices[best], meta)

    @abstractmethod
    def decide(
        self,
        means: Sequence[float],
        tokens: Sequence[TokenLogprobs],
        unconditional: Sequence[TokenLogprobs] | None,
    ) -> tuple[int, dict[str, Any]]:
        """Return the index of the chosen text, and further entries for `meta_info`.

        Args:
            means: the mean log-probability of each choice's tokens.
            tokens: each choice's tokens, scored after the prompt.
            unconditional: each choice's tokens, scored without the prompt; None unless
                `requires_unconditional_logprobs`.
        """


class TokenLengthNormalized(_ByIndex):
    """The method that chooses the text with the highest mean log-probability per token.

    This favours long choices whose last tokens are predictable.
    """

    def decide(
        self,
        means: Sequence[float],
        tokens: Sequence[TokenLogprobs],
        unconditional: Sequence[TokenLogprobs] | None,
    ) -> tuple[int, dict[str, Any]]:
        return _argmax(means), {}


class GreedyTokenSelection(_ByIndex):
    """The method that chooses token by token, as greedy decoding would.

    At each position, only the choices with the most likely token remain.

    A choice that is shorter than others is padded with its own mean log-probability.
    """

    def decide(
        self,
        means: Sequence[float],
        tokens: Sequence[TokenLogprobs],
        unconditional: Sequence[TokenLogprobs] | None,
    ) -> tuple[int, dict[str, Any]]:
        rows = [_logprobs(row) for row in tokens]
        width = max(map(len, rows))
        padded = [row + [_mean(row)] * (width - len(row)) for row in rows]
        left = list(range(len(rows)))
        for column in range(width):
            best = max(padded[i][column] for i in left)
            left = [i for i in left if padded[i][column] == best]
        return left[0], {"greedy_logprob_matrix": padded}


class UnconditionalLikelihoodNormalized(_ByIndex):
    """The method that chooses the highest mean of log p(token | prompt) - log p(token).

    EleutherAI proposed it.
    """

    @property
    def requires_unconditional_logprobs(self) -> bool:
        return True

    def decide(
        self,
        means: Sequence[float],
        tokens: Sequence[TokenLogprobs],
        unconditional: Sequence[TokenLogprobs] | None,
    ) -> tuple[int, dict[str, Any]]:
        if unconditional is None:
            raise ValueError("unconditional_likelihood_normalized needs unconditional logprobs")
        gains = [
            _mean([given - alone for given, alone in zip(_logprobs(a), _logprobs(b), strict=False)])
            for a, b in zip(tokens, unconditional, strict=True)
        ]
        return _argmax(gains), {
            "unconditional_token_logprobs": unconditional,
            "normalized_unconditional_prompt_logprobs": gains,
        }


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()


def _logprobs(row: TokenLogprobs) -> list[float]:
    return [entry[0] or 0.0 for entry in row]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
