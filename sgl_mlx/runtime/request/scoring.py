"""Scores of choices: the logprobs of each choice after a prompt, from which `select` chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgl_mlx import bounds
from sgl_mlx.core import ChoiceScore, ChoiceScores, Completion, SamplingParams, TokenLogprob
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.request.encode import Encoded, extend
from sgl_mlx.runtime.request.prepare import Prepared, Preparer, Source
from sgl_mlx.tokenizer import Tokenizer

SCORING = SamplingParams(
    max_new_tokens=0, return_logprob=True, logprob_start_len=0, return_text_in_logprobs=True
)


class Scoring:
    """The scoring of choices for one `select`: one request for the prompt with each choice.

    Args:
        unconditional: also make one request for each choice without the prompt.

    Attributes:
        requests: number of requests.

    Raises:
        InvalidParamsError: `choices` is empty or holds anything but non-empty texts, or
            `unconditional` is not a bool.
        LimitError: there are too many choices, or one is too long.
    """

    def __init__(
        self, choices: Sequence[str], unconditional: bool, tokenizer: Tokenizer, limits: Limits
    ) -> None:
        unconditional = bounds.flag("unconditional", unconditional)
        choices = bounds.items(bounds.filled_text)("choices", choices)
        if not choices:
            raise InvalidParamsError("choices must be a non-empty list of texts")
        limits.check("max_choices", len(choices), f"there are {len(choices):,} choices")
        longest = max(map(len, choices))
        limits.check("max_prompt_chars", longest, f"a choice has {longest:,} characters")
        self.requests = len(choices) * (2 if unconditional else 1)
        self._choices = choices
        self._unconditional = unconditional
        self._tokenizer = tokenizer
        self._prompt_tokens = 0

    def prepare(self, source: Source, preparer: Preparer) -> list[Prepared]:
        """Prepare a request for the prompt with each choice.

        With `unconditional`, one request for each choice alone follows. Raises what
        `Source.encode` and `Preparer.prepare` raise.
        """
        prompt = source.encode()
        self._prompt_tokens = prompt.total
        asked = [continue_with(prompt, choice, self._tokenizer) for choice in self._choices]
        if self._unconditional:
            asked += [(Encoded(e.tokens[start:]), 0) for e, start in asked]
        return [preparer.prepare(e, replace(SCORING, logprob_start_len=s)) for e, s in asked]

    def scores(self, found: Sequence[Completion]) -> ChoiceScores:
        """Return the scores from the requests' completions, in the order of `prepare`."""
        return choice_scores(self._choices, self._prompt_tokens, found)


def continue_with(prompt: Encoded, choice: str, tokenizer: Tokenizer) -> tuple[Encoded, int]:
    """Return the prompt with a choice appended, and the index of the first new token.

    The index counts the prompt's own tokens (`Encoded.tokens`). If the prompt's last token merges
    with the choice, the merged token counts as new: the choice is scored with the tokens that
    prompt and choice have as one text.
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
    """Return the scores of choices from the completions of their requests.

    Args:
        prompt_tokens: number of tokens of the prompt without a choice.
        found: one completion for each choice after the prompt; then one for each choice alone, or
            none.
    """
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
